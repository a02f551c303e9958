"""Clouds to run the command on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.command import succeed
from tests.tools.shop import Shop, shop_that_is_up


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """The directory of a new cloud."""
    root = tmp_path / "cloud"
    succeed("init", root, "--operator", "ada")
    return root


@pytest.fixture
def written(tmp_path: Path) -> Shop:
    """A cloud with a definition, of which nothing runs."""
    return Shop(tmp_path / "shop")


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A cloud that runs, shared by all tests that leave it as they found it, or that do not mind what they find."""
    with shop_that_is_up(tmp_path_factory.mktemp("up") / "shop") as shop:
        yield shop


@pytest.fixture
def shop(up: Shop) -> Shop:
    """The shared cloud, at web 1.0 and its first greeting."""
    up.apply(web="web-1", greeting="hello")
    return up
