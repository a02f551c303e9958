"""Imports only go down, delta < cas < agent < deployer < tools; of `agent`, `deployer` sees only its API and client."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["delta", "cas", "agent", "deployer", "tools"]
DEPLOYER_MAY_SEE = {"agent.api", "agent.client"}


def imported_modules(source: str, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = package if node.level else ""
            module = ".".join(part for part in (prefix, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(package: str, source: str) -> list[str]:
    floor = FLOORS.index(package)
    found = []
    for module in imported_modules(source, package):
        top = module.split(".")[0]
        if top not in FLOORS:
            continue
        upward = FLOORS.index(top) > floor
        past_the_api = package == "deployer" and top == "agent" and not reaches_only_the_api(module)
        if upward or past_the_api:
            found.append(module)
    return found


def reaches_only_the_api(module: str) -> bool:
    return module == "agent" or any(module == seen or module.startswith(seen + ".") for seen in DEPLOYER_MAY_SEE)


@pytest.mark.parametrize("package", FLOORS)
def test_imports_only_go_down(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no module in {package}/"
    wrong = {str(f.relative_to(ROOT)): v for f in files if (v := violations(package, f.read_text()))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("delta", "import cas"),
        ("cas", "from agent.api.calls import Call"),
        ("agent", "def late():\n    import deployer.planning.plan"),
        ("deployer", "from agent.daemon import server"),
        ("deployer", "import agent.daemon.state"),
        ("deployer", "from agent.api_server import Call"),
        ("deployer", "from agent import api, pulse"),
    ],
)
def test_the_check_sees_an_import_that_goes_up(package: str, source: str) -> None:
    assert violations(package, source)


@pytest.mark.parametrize(
    "source",
    ["from agent.api.calls import Call", "from agent import client, api", "import agent.client.errors, cas.store"],
)
def test_the_check_lets_the_deployer_use_the_api(source: str) -> None:
    assert violations("deployer", source) == []
