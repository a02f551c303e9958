"""The agent's end of the supervisor: `agent.runtime.Runtime` over the Unix socket in the state directory.

`connect` starts a supervisor where none runs. Everything here runs on the agent's event loop; requests of many tasks go
over one connection and are answered in any order. When the connection breaks, every call under way and every later one
raises RuntimeUnavailable, and `exits` ends with it: connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

import agent
from agent.api.processes import Ready
from agent.build import build
from agent.runtime import (
    EndpointTaken,
    GuestExited,
    GuestFailed,
    GuestId,
    GuestOrder,
    GuestState,
    RuntimeUnavailable,
)
from agent.supervisor.wire import (
    LENGTH_BYTES,
    MAX_MESSAGE_BYTES,
    SOCKET_NAME,
    WIRE_VERSION,
    Action,
    Answer,
    Check,
    Drain,
    Exited,
    Failure,
    Flip,
    Forget,
    Hello,
    Kill,
    ListGuests,
    Request,
    SetCpus,
    SetMemory,
    ShutDown,
    Spawn,
    ToAgent,
    WaitReady,
    frame,
)

START_DEADLINE_S: Final = 30.0
HELLO_DEADLINE_S: Final = 10.0
CONNECT_ATTEMPTS: Final = 3
SHUT_DOWN_DEADLINE_S: Final = 15.0
END_DEADLINE_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("=iII")
"""`struct ucred` of unix(7): process, user, group."""

_log = logging.getLogger(__name__)


async def connect(state_dir: Path) -> SupervisorClient:
    """Reach the supervisor of a state directory; start it first where none runs. One of another build, from before
    an upgrade, is ended, and its successor takes its guests over. Raises RuntimeUnavailable."""
    problem = ""
    for _ in range(CONNECT_ATTEMPTS):
        try:
            reader, writer = await _open(state_dir)
        except OSError:
            problem = await _start(state_dir)
            continue
        hello = await _greet(reader, writer)
        if (hello.version, hello.build) == (WIRE_VERSION, build()):
            return SupervisorClient(reader, writer, hello.pid)
        problem = f"supervisor {hello.pid} is of another build (wire {hello.version}, {hello.build or 'unknown'})"
        _log.warning("%s: one of this agent's succeeds it and takes its guests over", problem)
        await _end(writer, hello)
    raise RuntimeUnavailable(f"no supervisor can be started in {state_dir}: {problem or 'it does not listen'}")


async def _open(state_dir: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Through the descriptor, because a socket's path may have at most 107 bytes.
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
    finally:
        os.close(directory)


async def _start(state_dir: Path) -> str:
    """Start a supervisor; why that failed, or nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "agent.supervisor.main",
        str(state_dir),
        env=_environment(),
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), START_DEADLINE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"it did not start within {START_DEADLINE_S:g} s"
    return said.decode(errors="replace").strip() if process.returncode else ""


def _environment() -> dict[str, str]:
    """Nothing of the agent's own environment but what finds the same code and the same libraries."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TZ") if name in os.environ}
    here = Path(agent.__file__).parent.parent
    return {**kept, "PYTHONPATH": str(here), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello:
    try:
        hello = await asyncio.wait_for(_read(reader), HELLO_DEADLINE_S)
        if isinstance(hello, Hello):
            return hello
        raise ValueError("it does not begin with a greeting")
    except (TimeoutError, OSError, EOFError, ValueError, msgspec.DecodeError) as error:
        writer.close()
        raise RuntimeUnavailable(f"the supervisor does not answer: {error!r}") from error


async def _end(writer: asyncio.StreamWriter, hello: Hello) -> None:
    """End a supervisor, and nothing else. Returns when it has ended."""
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _, _ = _CREDENTIALS.unpack(peer)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    finally:
        writer.close()
    try:
        if pid != hello.pid:
            raise RuntimeUnavailable(f"the supervisor says that it is process {hello.pid}, but it is {pid}")
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not (await asyncio.to_thread(select.select, [pidfd], [], [], END_DEADLINE_S))[0]:
            raise RuntimeUnavailable(f"the supervisor (process {pid}) does not end")
    finally:
        os.close(pidfd)


async def _read(reader: asyncio.StreamReader) -> ToAgent:
    """One message. Raises EOFError, ValueError or msgspec.DecodeError."""
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "little")
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes is announced; at most {MAX_MESSAGE_BYTES} are accepted")
    message: ToAgent = msgspec.msgpack.decode(await reader.readexactly(length), type=ToAgent)
    return message


class SupervisorClient:
    """Implements `agent.runtime.Runtime`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, supervisor_pid: int) -> None:
        self.supervisor_pid = supervisor_pid
        self._reader = reader
        self._writer = writer
        self._next = 1
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._exits: asyncio.Queue[GuestExited | None] = asyncio.Queue()
        self._broken: str | None = None
        self._shutting_down = False
        self._task = asyncio.create_task(self._receive())

    async def spawn(self, order: GuestOrder) -> GuestState:
        return self._state_in(await self._call(Spawn(order)))

    async def wait_ready(self, guest: GuestId, ready: Ready | None, *, deadline_s: float) -> None:
        await self._call(WaitReady(guest, ready, deadline_s))

    async def check(self, order: GuestOrder, *, deadline_s: float) -> GuestState:
        return self._state_in(await self._call(Check(order, deadline_s)))

    async def flip(self, guest: GuestId) -> None:
        await self._call(Flip(guest))

    async def drain(self, guest: GuestId, *, deadline_s: float, hands_over: bool = False) -> bool:
        return (await self._call(Drain(guest, deadline_s, hands_over))).drained

    async def kill(self, guest: GuestId) -> GuestState:
        return self._state_in(await self._call(Kill(guest)))

    async def forget(self, guest: GuestId) -> None:
        await self._call(Forget(guest))

    async def set_cpus(self, guest: GuestId, cpus: tuple[int, ...]) -> None:
        await self._call(SetCpus(guest, cpus))

    async def set_memory(self, guest: GuestId, memory_bytes: int) -> None:
        await self._call(SetMemory(guest, memory_bytes))

    async def guests(self) -> dict[GuestId, GuestState]:
        return {state.guest: state for state in (await self._call(ListGuests())).guests}

    async def exits(self) -> AsyncIterator[GuestExited]:
        """See the protocol. Raises RuntimeUnavailable when the connection breaks; ends after `close`."""
        while (exited := await self._exits.get()) is not None:
            yield exited
        self._exits.put_nowait(None)
        if self._broken is not None:
            raise RuntimeUnavailable(self._broken)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def shut_down(self) -> None:
        self._shutting_down = True
        await self._call(ShutDown())
        # The connection closes when the supervisor has ended everything.
        await asyncio.wait([self._task], timeout=SHUT_DOWN_DEADLINE_S)
        await self.close()

    async def _call(self, action: Action) -> Answer:
        if self._broken is not None or self._task.done():
            raise RuntimeUnavailable(self._broken or "the connection to the supervisor is closed")
        number, self._next = self._next, self._next + 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._writer.write(frame(Request(number, action)))
            await self._writer.drain()
            return await answer
        except OSError as error:
            if answer.done():
                answer.exception()  # taken, or its loss would be logged as an error that nobody looked at
            raise RuntimeUnavailable(f"the supervisor is gone: {error}") from error
        finally:
            self._pending.pop(number, None)

    async def _receive(self) -> None:
        try:
            while True:
                self._take(await _read(self._reader))
        except (OSError, EOFError, ValueError, msgspec.DecodeError) as error:
            if not self._shutting_down:
                self._broken = f"the connection to the supervisor broke: {error}"
        finally:
            self._exits.put_nowait(None)
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(RuntimeUnavailable(self._broken or "the connection was closed"))

    def _take(self, message: ToAgent) -> None:
        match message:
            case Exited():
                self._exits.put_nowait(GuestExited(message.state))
            case Answer() if (future := self._pending.get(message.number)) and not future.done():
                future.set_result(message)
            case Failure() if (future := self._pending.get(message.number)) and not future.done():
                future.set_exception(_error_of(message))
            case _:
                pass

    @staticmethod
    def _state_in(answer: Answer) -> GuestState:
        if answer.state is None:
            raise RuntimeUnavailable("the supervisor answered without a guest's state")
        return answer.state


def _error_of(failure: Failure) -> Exception:
    match failure.kind:
        case "endpoint-taken":
            return EndpointTaken(failure.message, state=failure.state)
        case "guest-failed":
            return GuestFailed(failure.message, state=failure.state)
        case _:
            return RuntimeUnavailable(f"the supervisor refused: {failure.message}")
