"""The source distribution builds, and the wheel that comes out is pure, complete and the same every time."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from examples import build

ROOT = Path(__file__).parent.parent.parent
BUILD_TIMEOUT_S = 250


def hatchling(source: Path, target: str, out_dir: Path) -> Path:
    """Build with the backend itself: no isolation, so no download. Returns the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out_dir)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out_dir.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hatchling(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked source distribution, so that whatever is missing there fails here."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, unpacked)
    (source,) = unpacked.iterdir()
    return hatchling(source, "wheel", tmp_path_factory.mktemp("wheel"))


def check_wheel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / ".ci" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_source_distribution_holds_sources_only(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith((".wasm", ".cwasm", ".pyc"))]
    for needed in ("hatch_build.py", "examples/web.c", "examples/wit/deps/io.wit", "examples/build.py"):
        assert any(name.endswith(f"/{needed}") for name in names), needed


def test_the_wheel_is_pure_and_carries_the_guests_but_no_tests(wheel: Path) -> None:
    assert check_wheel().faults(wheel) == []


def test_the_check_sees_a_wheel_with_tests_or_without_guests(wheel: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / wheel.name.replace("none-any", "none-linux_x86_64")
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(spoilt, "w") as bad:
        for name in good.namelist():
            if name != "tools/guests/kv.wasm":
                bad.writestr(name, good.read(name))
        bad.writestr("cas/tests/test_store.py", "")
    found = "\n".join(check_wheel().faults(spoilt))
    assert "it lacks tools/guests/kv.wasm" in found
    assert "cas/tests/test_store.py does not belong in it" in found
    assert "not for every platform" in found


def test_the_same_sources_give_the_same_guests_in_any_directory(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for path in build.build(tmp_path):
            assert archive.read(f"tools/guests/{path.name}") == path.read_bytes(), path.name


def test_the_two_versions_of_the_web_server_differ_a_little(tmp_path: Path) -> None:
    first, second = [path.read_bytes() for path in build.build(tmp_path)][:2]
    assert first != second
    assert abs(len(second) - len(first)) < 2000
    assert len(second) < 100_000
