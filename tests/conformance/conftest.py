from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.stores import KINDS, AnyStore, Clock, open_store
from tests.engines.support import CollectsBoth, shared_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[*KINDS, "shared"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, engine_name: str) -> Iterator[AnyStore]:
    """`shared`: over a real S3 store, and so without what is private to LMDB."""
    if request.param == "shared":
        weed = request.getfixturevalue("weed")
        with shared_store(tmp_path, weed=weed, name=engine_name, clock=clock, kind=CollectsBoth) as shared:
            yield shared
        return
    with open_store(request.param, tmp_path, clock) as opened:
        yield opened
