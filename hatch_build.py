"""Builds the WebAssembly that the wheel carries, so that it is one pure Python wheel for every platform.

Runs for `pip install .`, `pip install -e .` and `pip wheel .` alike. What is built: the guests of `examples/`, and the
kernel of the delta codec. Both need only the build requirements of `pyproject.toml`. The source distribution holds the
sources, never what was built from them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TAG = "py3-none-any"


class WebAssemblyBuildHook(BuildHookInterface[Any]):
    """Found by hatchling through `[tool.hatch.build.targets.wheel.hooks.custom]`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (the interface's name)
        root = Path(self.root)
        load(root / "examples" / "build.py").build(root / "tools" / "guests")
        kernel = root / "delta" / "kernel"
        if (kernel / "build.py").is_file():
            load(kernel / "build.py").build(kernel / "delta.wasm")
        build_data["pure_python"] = True
        build_data["tag"] = TAG


def load(path: Path) -> ModuleType:
    """A module by its file: this package is not installed yet."""
    spec = importlib.util.spec_from_file_location(f"lowcloud_{path.parent.name}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
