"""Whether a host that owes an answer is still there: its agent makes a TLS handshake, or it does not.

Some answers take minutes, and an agent that is frozen, or stuck for good, leaves its connections open: the kernel goes
on acknowledging what it sends to nobody. So while an answer is waited for and nothing moves, the host's pulse is felt
from time to time on a connection of its own, which an agent of any version answers. Whoever waits at the same time
feels it together. An agent that is only busy has a pulse, and is waited for as long as the question allows; one whose
bytes still move is there, however slow its link is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

QUIET_S: Final = 8.0
"""The pulse is felt after so long in which nothing has moved, and then again."""
HANDSHAKE_S: Final = 8.0
HANDSHAKES: Final = 2
"""So many must fail, one after the other, before a host is given up."""
SILENT_S: Final = QUIET_S + HANDSHAKES * HANDSHAKE_S
"""After so long it is noticed that nobody is there any more."""


class Silent(Exception):
    """The host has no pulse."""


class Moved:
    """That bytes of a question or of its answer were taken: counted, so that it is seen whether any were since."""

    def __init__(self) -> None:
        self.times = 0

    def tell(self) -> None:
        self.times += 1


class Pulse:
    """The pulse of one host. `address` is `address:port`, an IPv6 address in brackets; `close` it at the end."""

    def __init__(self, address: str, context: ssl.SSLContext, server_name: str) -> None:
        host, _, port = address.rpartition(":")
        self._host = host.removeprefix("[").removesuffix("]")
        self._port = port
        self._context = context
        self._server_name = server_name
        self._feeling: asyncio.Task[bool] | None = None

    async def close(self) -> None:
        if self._feeling is not None:
            self._feeling.cancel()
            await asyncio.gather(self._feeling, return_exceptions=True)

    async def while_there(self, ask: Callable[[Moved], Awaitable[T]]) -> T:
        """What comes of a question, as long as the host is there. Raises Silent."""
        moved = Moved()
        asking = asyncio.ensure_future(ask(moved))
        try:
            while not asking.done():
                before = moved.times
                await asyncio.wait([asking], timeout=QUIET_S)
                if asking.done() or moved.times != before:
                    continue
                feeling = self._feel()
                await asyncio.wait([asking, feeling], return_when=asyncio.FIRST_COMPLETED)
                if not asking.done() and moved.times == before and not feeling.result():
                    raise Silent
            return asking.result()
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    def _feel(self) -> asyncio.Task[bool]:
        if self._feeling is None or self._feeling.done():
            self._feeling = asyncio.get_running_loop().create_task(self._is_felt())
        return self._feeling

    async def _is_felt(self) -> bool:
        for _ in range(HANDSHAKES):
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    _, writer = await asyncio.open_connection(
                        self._host, self._port, ssl=self._context, server_hostname=self._server_name
                    )
            except TimeoutError:
                continue
            except OSError:
                return True  # somebody says no; what became of the question, its own connection tells
            writer.transport.abort()
            return True
        return False
