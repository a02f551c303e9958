"""A real agent that gives out wrong bytes: `python -m tests.world.liar`, with the words of `lowcloud agent`.

Its certificate, its store and all its answers are an agent's; only one bit of each piece is turned on its way out.
"""

from __future__ import annotations

import sys
from typing import Any

from agent.daemon.peering.serving import Giving
from tools.main import main

_honestly = Giving._passed


async def _turned(self: Giving, peer: str, piece: bytes) -> bytes:
    passed = bytearray(await _honestly(self, peer, piece))
    passed[len(passed) // 2] ^= 1
    return bytes(passed)


if __name__ == "__main__":
    turned: Any = _turned
    Giving._passed = turned  # type: ignore[method-assign]
    sys.argv[1:1] = ["agent"]
    sys.exit(main())
