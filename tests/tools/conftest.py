"""Clouds to run the command on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.command import succeed


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """The directory of a new cloud."""
    root = tmp_path / "cloud"
    succeed("init", root, "--operator", "ada")
    return root
