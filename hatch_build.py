"""Builds the WebAssembly that the wheel carries, so that it is one pure Python wheel for every platform.

Runs for `pip install .`, `pip install -e .` and `pip wheel .` alike. What is built: the guests of `examples/`, and the
kernel of the delta codec. Both need only the build requirements of `pyproject.toml`. The source distribution holds the
sources, never what was built from them.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TAG = "py3-none-any"
SOURCE_SUFFIXES = (".c", ".h", ".py", ".wit")
BUILDS = {
    "examples": ("tools/guests", ("web-1.wasm", "web-2.wasm", "kv.wasm", "client.wasm")),
    "delta/kernel": ("delta/kernel", ("delta.wasm",)),
}
"""Where the sources and their `build.py` are: where the results go, and what they are."""


class WebAssemblyBuildHook(BuildHookInterface[Any]):
    """Found by hatchling through `[tool.hatch.build.targets.wheel.hooks.custom]`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (the interface's name)
        root = Path(self.root)
        with compiler_cache():
            for sources, (out_dir, names) in BUILDS.items():
                build(root / sources, root / out_dir, names, requirements=root / "pyproject.toml")
        build_data["pure_python"] = True
        build_data["tag"] = TAG


def build(sources: Path, out_dir: Path, names: Iterable[str], *, requirements: Path) -> None:
    """Build what is not there yet: pip asks for a wheel twice, first for its metadata only."""
    if not up_to_date([out_dir / name for name in names], [requirements, *files_below(sources)]):
        load(sources / "build.py").build(out_dir)


def up_to_date(outputs: Iterable[Path], sources: Iterable[Path]) -> bool:
    """Whether every output is there and newer than every source (one of them names the compiler's version)."""
    built = [output.stat().st_mtime_ns if output.is_file() else 0 for output in outputs]
    return min(built) > max(source.stat().st_mtime_ns for source in sources)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.suffix in SOURCE_SUFFIXES]


@contextmanager
def compiler_cache() -> Iterator[None]:
    """Keep the compiler's cache out of the tree and out of the user's home, which may not be writable."""
    with tempfile.TemporaryDirectory(prefix="lowcloud-compiler-") as directory:
        before = dict(os.environ)
        os.environ.update(ZIG_GLOBAL_CACHE_DIR=directory, ZIG_LOCAL_CACHE_DIR=directory)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def load(path: Path) -> ModuleType:
    """A module by its file: this package is not installed yet."""
    spec = importlib.util.spec_from_file_location(f"lowcloud_{path.parent.name}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
