"""Is this wheel what it should be? Used by `.ci/run` and by the tests of the packaging.

It is pure Python for every platform, carries the guests and (where the sources have one) the delta kernel, and nothing
that is only for development: no tests, no examples, no benchmarks, no C.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

PACKAGES = ("agent", "cas", "delta", "deployer", "tools")
GUESTS = ("web-1", "web-2", "kv", "client")
KERNEL = "delta/kernel/delta.wasm"
SUFFIXES = (".py", ".wasm", ".typed")
ROOT = Path(__file__).resolve().parent.parent


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, in words; empty if nothing is."""
    found = []
    if not wheel.name.endswith("-py3-none-any.whl"):
        found.append(f"{wheel.name} is not for every platform (py3-none-any)")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/WHEEL"))
        if "Root-Is-Purelib: true" not in archive.read(metadata).decode():
            found.append("it is not pure Python")
        wanted = [f"tools/guests/{guest}.wasm" for guest in GUESTS]
        if (ROOT / "delta" / "kernel" / "build.py").is_file():
            wanted.append(KERNEL)
        found += [f"it lacks {name}" for name in wanted if name not in names]
        binaries = [name for name in names if name.endswith(".wasm")]
        found += [f"{name} is no WebAssembly" for name in binaries if archive.read(name)[:4] != b"\0asm"]
    code = [name for name in names if ".dist-info/" not in name]
    found += [f"{name} does not belong in it" for name in code if not belongs(name)]
    return found


def belongs(name: str) -> bool:
    parts = name.split("/")
    is_test = "tests" in parts or parts[-1].startswith("test_") or parts[-1] == "conftest.py"
    return parts[0] in PACKAGES and name.endswith(SUFFIXES) and not is_test


def main() -> int:
    found = [fault for argument in sys.argv[1:] for fault in faults(Path(argument))]
    print("\n".join(found) or "the wheel is pure, complete and without tests")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
