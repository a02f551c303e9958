"""How one question is put to a host's agent, and its answer taken.

A question that was lost with an idle connection is put again, a long one is deflated, an answer that is longer than any
can be is not taken. It is waited for as long as whoever asks says, and a host that dies or freezes meanwhile is noticed
in under half a minute (`agent.pulse`). Whatever goes wrong is one of `agent.client.errors`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import aiohttp
import msgspec

from agent import tls
from agent.api.answers import Refusal
from agent.client.errors import AgentError, BadAnswer, CallRefused, HostSilent, HostUnreachable
from agent.client.greetings import Greetings
from agent.pulse import SILENT_S, Moved, Pulse, Silent, Stuck
from agent.sockets import Sockets

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0
"""For an answer that needs no work on the host."""
MAX_ANSWER_BYTES: Final = 64 << 20
MAX_REFUSAL_BYTES: Final = 2 << 20
"""Of an agent of before, which tells of up to 20,000 missing blobs; other refusals have a few KiB."""
READ_AHEAD_BYTES: Final = 1 << 20
"""What may have arrived of an answer beyond what was taken of it."""
UNSAID: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Of no use to an agent; in small questions they were half of the bytes."""
DEFLATED_BYTES: Final = 256
"""Questions that are longer are deflated: mostly they are digests in hexadecimal."""
AT_ONCE_BYTES: Final = 32 << 10
"""What has more is deflated in a thread: 32 KiB take 1 ms, the longest question 0.5 s of processor time."""
TRIES: Final = 2
"""A connection that the host closed while it lay idle costs one more try."""

T = TypeVar("T")


class Connections:
    """To one host's agent: a pool, over which questions may go side by side between `open` and `close`. `greetings`:
    what its connections are counted in, and limited by."""

    def __init__(self, host_name: str, address: str, credentials_dir: Path, greetings: Greetings | None = None) -> None:
        self._host_name = host_name
        self._address = address
        self._greetings = greetings
        self._credentials_dir = credentials_dir
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._pulse: Pulse | None = None
        self._sockets = Sockets()

    async def open(self) -> None:
        self._context = await asyncio.to_thread(tls.client_context, self._credentials_dir)
        self._pulse = Pulse(self._address, self._context, tls.server_name(self._host_name))
        self._session = self._new_session()

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=16, socket_factory=self._sockets.make),
            auto_decompress=False,
            read_bufsize=READ_AHEAD_BYTES,
            skip_auto_headers=UNSAID,
            trace_configs=[self._greetings.watched()] if self._greetings else None,
        )

    async def close(self) -> None:
        if self._pulse is not None:
            await self._pulse.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def drop(self) -> None:
        """End all of them, with what is still on its way; the next question makes a new one."""
        if self._session is not None:
            self._sockets.forget_unsent()
            session, self._session = self._session, self._new_session()
            await session.close()

    def acknowledged_bytes(self) -> int | None:
        """Of all that was sent over the connections that are open; None where the system does not say."""
        return self._sockets.acknowledged_bytes()

    def received_bytes(self) -> int | None:
        """Of all that has arrived over those that are open; None where the system does not say."""
        return self._sockets.received_bytes()

    async def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: bytes | None = None,
        stream: AsyncIterable[bytes | memoryview] | None = None,
        query: dict[str, str] | None = None,
        timeout_s: float | None = READ_TIMEOUT_S,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> T:
        """The answer to a question, whose body is whole (`body`) or made while it is sent (`stream`, which can be sent
        only once). `timeout_s` None: as long as something moves. Raises CallRefused, HostUnreachable, BadAnswer."""
        tries = TRIES if stream is None else 1
        for attempt in range(tries):
            try:
                sent = body if stream is None else stream
                moved = Moved(self._sockets.acknowledged_bytes)
                once = functools.partial(self._ask_once, method, path, kind, sent, query, timeout_s, max_bytes, moved)
                return await self._while_there(once, moved, timeout_s)
            except HostUnreachable as error:
                lost_idle = isinstance(error.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                refused = isinstance(error.__cause__, aiohttp.ClientConnectorError)
                if attempt + 1 == tries or refused or not lost_idle:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def _ask_once(
        self,
        method: str,
        path: str,
        kind: type[T],
        sent: bytes | AsyncIterable[bytes | memoryview] | None,
        query: dict[str, str] | None,
        timeout_s: float | None,
        max_bytes: int,
        moved: Moved,
    ) -> T:
        body = _telling(sent, moved) if isinstance(sent, AsyncIterable) else sent
        headers = {}
        if isinstance(body, bytes) and len(body) > DEFLATED_BYTES:
            smaller = await _deflated(body)
            if len(smaller) < len(body):
                body, headers = smaller, {"Content-Encoding": "deflate"}
        async with self.request(method, path, body=body, query=query, headers=headers, timeout_s=timeout_s) as answer:
            return self._decoded(await self.bounded(answer, max_bytes, moved), kind)

    async def _while_there(self, ask: Callable[[], Awaitable[T]], moved: Moved, timeout_s: float | None) -> T:
        """Raises HostSilent."""
        if self._pulse is None or (timeout_s is not None and timeout_s <= SILENT_S):
            return await ask()
        try:
            return await self._pulse.while_there(ask, moved, ends=timeout_s is not None, drop=self.drop)
        except Silent as error:
            raise HostSilent(
                f"{self._host_name} at {self._address} has given no sign of life for {SILENT_S:.0f} s"
            ) from error
        except Stuck as error:
            raise HostSilent(f"{self._host_name} at {self._address} {error}") from error

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes | memoryview] | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None,
        stalled_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose answer is a success, put once; every other way it can end is one of `agent.client.errors`."""
        if self._session is None or self._context is None:
            raise RuntimeError("use AgentClient as an asynchronous context manager")
        limit_s = self._greetings.limit_s if self._greetings else CONNECT_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=limit_s, sock_read=stalled_s)
        try:
            async with self._session.request(
                method,
                f"https://{self._address}{path}",
                params=query,
                data=body,
                headers=headers,
                ssl=self._context,
                server_hostname=tls.server_name(self._host_name),
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    raise self._refused(answer.status, await self.bounded(answer, MAX_REFUSAL_BYTES))
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise HostUnreachable(
                f"{self._address} is not {self._host_name}: {error.certificate_error}",
                hint="the address belongs to another host, or its certificate is of another cloud",
            ) from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise HostUnreachable(
                f"{self._host_name} at {self._address} and this operator do not trust each other: {error}",
                hint="the host and the operator must have certificates of the same cloud (`lowcloud host add`)",
            ) from error
        except TimeoutError as error:
            waited_s = limit_s if isinstance(error, aiohttp.ConnectionTimeoutError) else timeout_s or stalled_s
            waited = f" within {waited_s:.0f} s" if waited_s else ""
            raise HostUnreachable(f"{self._host_name} at {self._address} did not answer{waited}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise HostUnreachable(f"{self._host_name} at {self._address} cannot be reached: {_plain(error)}") from error

    def _refused(self, status: int, data: bytes) -> AgentError:
        try:
            return CallRefused(msgspec.msgpack.decode(data, type=Refusal), self._host_name)
        except msgspec.MsgspecError:
            return BadAnswer(f"{self._host_name} at {self._address} answered {status} without saying why")

    def _decoded(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.msgpack.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError) as error:
            raise BadAnswer(f"{self._host_name} sent an answer that is not of this API: {error}") from error

    async def bounded(self, answer: aiohttp.ClientResponse, limit: int, moved: Moved | None = None) -> bytes:
        """All of an answer that comes by `request`. Raises BadAnswer where it has more than `limit` bytes."""
        pieces: list[bytes] = []
        size = 0
        async for piece in answer.content.iter_any():
            if moved is not None:
                moved.taken(len(piece))
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BadAnswer(f"{self._host_name} sent more than {limit} bytes where no answer is so large")
        return b"".join(pieces)  # Appending to one array would copy a large answer again and again.


async def _deflated(body: bytes) -> bytes:
    return zlib.compress(body) if len(body) <= AT_ONCE_BYTES else await asyncio.to_thread(zlib.compress, body)


async def _telling(chunks: AsyncIterable[bytes | memoryview], moved: Moved) -> AsyncIterator[bytes | memoryview]:
    async for chunk in chunks:
        moved.given(len(chunk))
        yield chunk


def _plain(error: BaseException) -> str:
    """Without what aiohttp adds to the system's words."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
