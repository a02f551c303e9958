"""What all tests need before the first of them runs."""

from __future__ import annotations

import signal

import pytest

from tests import guests


def pytest_configure() -> None:
    """A shell that runs the tests in the background ignores Ctrl-C for them, and every process that they start would
    inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Build the test guests once, before the worker processes start and outside of any test's time limit: the first use
    of the compiler's C library takes long on a busy machine."""
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and not session.config.option.collectonly:
        for name in guests.NAMES:
            guests.path(name)
