"""What all tests need before the first of them runs."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import guests

if TYPE_CHECKING:
    from tests.engines.servers import EtcdCluster, Weed


settings.register_profile("lowcloud", deadline=None)
settings.load_profile("lowcloud")
# How long an example takes says what else the machine does, and nothing about what is tested.


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


# --- the servers of shared clouds: started when a test first asks for one, one of each for a session ------------------


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members. A test that kills one starts it again."""
    from tests.engines.servers import EtcdCluster, skip_without_etcd

    skip_without_etcd()
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """An S3 store, with its credentials in the environment. A test that kills it starts it again."""
    from tests.engines.servers import Weed, with_credentials

    server = Weed(tmp_path_factory.mktemp("weed") / "server")
    with with_credentials():
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture
def engine_name() -> str:
    """A name at a shared server that no other test has."""
    return f"t{os.getpid()}-{next(_names)}"


_names = itertools.count()
