from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.store import Store
from tests.conformance.stores import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(tmp_path / "store", clock=clock) as opened:
        yield opened
