"""Whether a host that owes an answer is still there: its agent makes a TLS handshake, or it does not.

Some answers take minutes, and an agent that is frozen, or stuck for good, leaves its connections open: the kernel goes
on acknowledging what it sends to nobody. So while an answer is waited for and nothing moves, the host's pulse is felt
from time to time on a connection of its own, which an agent of any version answers. Whoever waits at the same time
feels it together. An agent that is only busy has a pulse, and is waited for as long as the question allows; one whose
bytes still move is there, however slow its link is.

A question that sets no time, because it brings something large, is given up where next to nothing of it is taken and
no answer comes: a host with a pulse could hold it up for ever otherwise.
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

LEAST_BYTES: Final = 256 << 10
LEAST_IN_S: Final = 600.0
"""No line is so slow that it takes less in this time (3.5 kbit/s)."""
KEPT_BYTES_S: Final = 1 << 20
"""No host is so slow that it makes less durable in a second, of all that it was sent, before it answers."""


class Silent(Exception):
    """The host has no pulse."""


class Stuck(Exception):
    """It has one, and does nothing."""

    def __init__(self, within_s: float) -> None:
        super().__init__(f"has a pulse, but has hardly taken anything for {within_s:.0f} s, nor answered")


class Moved:
    """The bytes of a question and of its answer that have arrived by now, as far as can be known."""

    def __init__(self, acknowledged: Callable[[], int | None] = lambda: None) -> None:
        """`acknowledged`: what the other side's system has of all that was sent to it, which falls when a connection
        ends; None where nobody knows. Then what was handed to our own counts."""
        self._acknowledged = acknowledged
        self._before = acknowledged()
        self._given = self._taken = 0

    def given(self, count: int) -> None:
        """So many more of the question were handed to the network."""
        self._given += count

    def taken(self, count: int) -> None:
        """So many more of the answer have come."""
        self._taken += count

    @property
    def bytes(self) -> int:
        now = self._acknowledged()
        return self._taken + (self._given if now is None or self._before is None else now - self._before)


class _Least:
    """Whether so much moves that it leads to an end. Mutable."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._counted_bytes = 0

    def require(self, moved_bytes: int, now_s: float) -> None:
        """Raises Stuck."""
        patience_s = LEAST_IN_S + max(0, moved_bytes) / KEPT_BYTES_S
        self._counted_bytes = min(self._counted_bytes, moved_bytes)
        if moved_bytes - self._counted_bytes >= LEAST_BYTES:
            self._since_s, self._counted_bytes = now_s, moved_bytes
        elif now_s - self._since_s > patience_s:
            raise Stuck(patience_s)


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

    async def while_there(
        self, ask: Callable[[], Awaitable[T]], moved: Moved, *, ends: bool, drop: Callable[[], Awaitable[None]]
    ) -> T:
        """What comes of a question, as long as the host is there. `ends`: it ends by itself after a time. `drop`: has
        what is still on its way not arrive, should the host come back. Raises Silent, and Stuck unless it `ends`."""
        clock = asyncio.get_running_loop().time
        least = _Least(clock())
        asking = asyncio.ensure_future(ask())
        try:
            while not asking.done():
                before = moved.bytes
                await asyncio.wait([asking], timeout=QUIET_S)
                if asking.done():
                    continue
                if not ends:
                    least.require(moved.bytes, clock())
                if moved.bytes != before:
                    continue
                feeling = self._feel()
                await asyncio.wait([asking, feeling], return_when=asyncio.FIRST_COMPLETED)
                if not asking.done() and moved.bytes == before and not feeling.result():
                    await drop()  # first: a request that is cancelled has its connection send all it holds
                    raise Silent
            return asking.result()
        finally:
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
