"""`kill -9` at random moments. `python -m tests.cas.crash 1000` does the same for longer."""

from __future__ import annotations

from pathlib import Path

from cas.digest import Digest
from tests.cas.crash import crash_once, verify

KILLS = 30


def test_a_store_killed_at_any_moment_is_sound_and_has_all_that_it_acknowledged(tmp_path: Path) -> None:
    kept: list[Digest] = []
    for seed in range(KILLS):
        kept += crash_once(tmp_path / "s", seed)
        verify(tmp_path / "s", kept)
    assert len(kept) > KILLS
