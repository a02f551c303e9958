"""Compiles the kernel's C sources to one WASM file. Called by the package's build hook; nothing imports it at run time.

The target has no operating system at all: the kernel imports nothing, so a hostile patch has nothing to call.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCES = (
    "base",
    "module",
    "maps",
    "model",
    "streams",
    "diff",
    "align",
    "cover",
    "match",
    "encode",
    "decode_code",
    "decode",
    "cover_codec",
    "text_find",
    "text_encode",
    "text_decode",
)
NAME = "delta.wasm"

FLAGS = (
    "-target",
    "wasm32-freestanding",
    "-mcpu=generic+bulk_memory+sign_ext+simd128",
    "-std=c17",
    "-Os",
    "-flto",
    "-fwrapv",  # hostile numbers overflow; what that gives is then defined, and the same in every build
    "-nostdlib",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-gnu-case-range",
    "-Wno-unused-function",
    "-Wl,--no-entry",
    "-Wl,--strip-all",
    "-Wl,-z,stack-size=1048576",
)


def build(out_dir: Path) -> Path:
    """Compile into `out_dir` and return the path of the WASM file. Raises subprocess.CalledProcessError."""
    here = Path(__file__).parent
    out = out_dir / NAME
    out_dir.mkdir(parents=True, exist_ok=True)
    sources = [str(here / f"{name}.c") for name in SOURCES]
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, *sources, "-o", str(out)], check=True)
    return out


if __name__ == "__main__":
    print(build(Path(__file__).parent))
