"""Ends agents with all that they run: `python -m tests.world.ending CREDENTIALS '{"HOST": "ADDRESS", …}'`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from agent.client.client import AgentClient


async def end(credentials: Path, addresses: dict[str, str]) -> None:
    async def one(host: str, address: str) -> None:
        async with AgentClient(host, address, credentials) as client:
            await client.shut_down(guests=True)

    answers = await asyncio.gather(*(one(*host) for host in addresses.items()), return_exceptions=True)
    for host, answer in zip(addresses, answers, strict=True):
        if answer is not None:
            print(f"{host}: {answer}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(end(Path(sys.argv[1]), json.loads(sys.argv[2])))
