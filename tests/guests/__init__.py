"""Guests that only tests run: `probe`, a component that does what its first argument names, and the core modules
`core` and `hostile`.

They are built on first use and kept by the digest of everything they are built from, so a second run builds nothing.
"""

from __future__ import annotations

import fcntl
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from examples import build

HERE = Path(__file__).parent
BUILT = HERE / "build"
NAMES = ("probe", "core", "hostile")


@functools.cache
def path(name: str) -> Path:
    """The file of a test guest, which is built if it has to be. Raises KeyError for another name, build.BuildFailed."""
    if name not in NAMES:
        raise KeyError(f"no test guest {name!r}; there are {', '.join(NAMES)}")
    source = HERE / f"{name}.c"
    output = BUILT / f"{name}-{_digest_of_sources(source)}.wasm"
    if not output.is_file():
        with _alone(), tempfile.TemporaryDirectory(prefix="lowcloud-test-guest-") as cache:
            make = build.build_component if name == "probe" else build.build_core
            if not output.is_file():
                make(source, output, cache=Path(cache))
    return output


@contextmanager
def _alone() -> Iterator[None]:
    """One build at a time: the first use of the C library costs seconds, and test processes run side by side."""
    BUILT.mkdir(exist_ok=True)
    with (BUILT / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest_of_sources(source: Path) -> str:
    files = [source, Path(build.__file__), *sorted(build.LIBRARY.iterdir()), *sorted(build.WIT.rglob("*.wit"))]
    hasher = blake3()
    for file in files:
        hasher.update(f"{file.name} {file.stat().st_size}\n".encode())
        hasher.update(file.read_bytes())
    return hasher.hexdigest()[:16]
