"""A small journey on every run; `python -m tests.fleet` makes the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fleet import outside
from tests.fleet.fleet import Fleet
from tests.fleet.journey import Journey

AGENTS = 5
SEED = 10
TROUBLES = ("none", "agents frozen", "deployer killed", "agents come back", "agents killed", "two deployers")


@pytest.mark.timeout(600)
def test_a_fleet_runs_exactly_its_last_definition_whatever_happened_on_the_way(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, AGENTS)
    try:
        fleet.start()
        told = Journey(fleet, SEED).go(len(TROUBLES), TROUBLES)
    finally:
        fleet.end()
    assert told.checks >= 2
    outside.check_gone(fleet)
