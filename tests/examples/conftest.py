"""The built guests: those of the wheel, built here from the sources of this checkout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples import build
from tests import guests


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a guest by its name."""
    directory = tmp_path_factory.mktemp("guests")
    build.build(directory)
    return lambda name: directory / f"{name}.wasm" if name not in guests.NAMES else guests.path(name)
