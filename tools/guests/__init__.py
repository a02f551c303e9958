"""The built guests of the examples, which the wheel carries: `web-1`, `web-2`, `kv` and `client`.

Their sources are in `examples/`; `hatch_build.py` builds them at install time, `python examples/build.py` by hand.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("web-1", "web-2", "kv", "client")


class GuestMissing(Exception):
    """A guest that is not there: of another name, or not built."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"there is no guest {name!r} in {HERE}")
        self.hint = hint


def path(name: str) -> Path:
    """The file of a guest. Raises GuestMissing."""
    if name not in NAMES:
        raise GuestMissing(name, f"the guests are {', '.join(NAMES)}")
    found = HERE / f"{name}.wasm"
    if not found.is_file():
        raise GuestMissing(
            name, "install the package (`pip install .`), or run `python examples/build.py` in a checkout"
        )
    return found
