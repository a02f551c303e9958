"""The daemon of one host: puts the parts together, says when it is ready, and ends without touching the guests.

The state directory (mode 0700; nobody else may write here):

    lock               held while an agent runs, so that two never share a state
    credentials/       ca.pem, cert.pem, key.pem of this host
    store/             the blobs
    processes/NAME     what is to run (`agent.daemon.state`)
    journal            what ran (`agent.daemon.journal`)
    volumes/NAME/      what outlives processes (`agent.daemon.volumes`)
    code/              compiled code (`agent.daemon.code_cache`); may be deleted
    guests/GUEST/      files of one guest; may be deleted while it does not run
    output/NAME/       what guests printed
    work/              unfinished compilations; emptied at start
    neighbours         the other hosts (`agent.daemon.peering.acquaintance`)
    words              the releases that others tell of (`agent.daemon.peering.words`)
    errands/           what is being fetched from them (`agent.daemon.peering.errands`)
    arriving/          what has come of it (`cas.partial`)
    supervisor.*       of the supervisor, which outlives the agent

SIGTERM and SIGINT end the agent; guests go on, and the next agent finds them. An operator's request to
`Routes.SHUTDOWN` with `guests=1` ends them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import shutil
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agent.daemon import allocator, networking
from agent.daemon.capacity import Limits
from agent.daemon.networking import DEFAULT, Mode

if TYPE_CHECKING:
    from agent.daemon.assembly import Agent
    from agent.daemon.peering.limits import PeerLimits

STOP_WITHIN_S: Final = 5.0
"""What requests that are under way get when the agent ends."""
FIRST_LINK_S: Final = 30.0
BACKLOG: Final = 128
"""So many connections are accepted per turn; where descriptors run out, asyncio logs as many errors each second."""
READ_AHEAD_BYTES: Final = 256 << 10
"""What may have arrived of one request beyond what its handler has taken."""
THREADS: Final = 16
"""For disk work: fsync, the store, hashing."""


_log = logging.getLogger(__name__)


class AgentCannotStart(Exception):
    """The message says why; nothing was started."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Ready(msgspec.Struct, frozen=True):
    """The line that is printed when the agent takes calls."""

    host: str
    address: str
    pid: int


def run(
    host: str,
    listen: str,
    state_dir: Path,
    credentials_dir: Path | None = None,
    *,
    limits: Limits | None = None,
    pin: bool = True,
    peer_limits: PeerLimits | None = None,
    store_quota_bytes: int | None = None,
    network: Mode = DEFAULT,
) -> None:
    """Be the agent of `host` until a signal or an operator ends it. Blocks.

    `listen`: `address:port` (port 0: any; the ready line says which). `limits`: what processes may be given in all, by
    default what the machine has. `pin`: give processes CPUs of their own; where several agents share a machine, say no:
    then cores are not held against what the machine has. `peer_limits`: of the exchange with other hosts.
    `store_quota_bytes`: the most that its blobs may take on disk. `network`: which guests get a network namespace.
    Raises AgentCannotStart.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    state_dir = state_dir.absolute()
    # Strangers hold a connection each until their handshake has failed; they must not use up what the work needs.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allocator.keep_freed()
    with hold(state_dir):
        asyncio.run(
            _serve(
                host,
                listen,
                state_dir,
                credentials_dir or state_dir / "credentials",
                limits,
                pin,
                peer_limits,
                store_quota_bytes,
                network,
            )
        )


@contextlib.contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Make the state directory and hold its lock. Raises AgentCannotStart where another agent does."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    state_dir.chmod(0o700)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AgentCannotStart(
            f"another agent runs in {state_dir}", hint="end it first, or use another --state directory"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


async def _serve(
    host: str,
    listen: str,
    state_dir: Path,
    credentials_dir: Path,
    limits: Limits | None,
    pin: bool,
    peer_limits: PeerLimits | None,
    store_quota_bytes: int | None,
    network: Mode,
) -> None:
    from agent import tls
    from agent.daemon.assembly import Agent

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="disk"))
    address, port = parse_listen(listen)
    problem = networking.why_not() if network == "namespaces" else ""
    if problem:
        raise AgentCannotStart(
            f"guests cannot be given network namespaces here: {problem}",
            hint="leave --network out: where namespaces cannot be had, guests use listeners on the host",
        )
    try:
        context = tls.server_context(credentials_dir)
    except tls.CredentialsUnusable as error:
        raise AgentCannotStart(str(error), hint=error.hint) from error
    await _see_that_it_can_listen(address, port)
    work = state_dir / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    agent = await Agent.open(
        host,
        state_dir,
        limits=limits,
        pin=pin,
        credentials=credentials_dir,
        peer_limits=peer_limits,
        store_quota_bytes=store_quota_bytes,
        network=network,
    )
    try:
        async with listening(agent, context, address, port) as bound:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LINK_S):
                    await agent.processes.linked.wait()
            _end_on_signals(agent)  # before anyone is told that it runs, and may end it
            print(msgspec.json.encode(Ready(host, bound, os.getpid())).decode(), flush=True)
            await agent.ended.wait()
    finally:
        await agent.close()


@contextlib.asynccontextmanager
async def listening(agent: Agent, context: ssl.SSLContext, address: str, port: int) -> AsyncIterator[str]:
    """Take calls; the `address:port` that is listened on. Raises AgentCannotStart."""
    from aiohttp import web

    runner = web.AppRunner(
        agent.service.application(), access_log=None, shutdown_timeout=STOP_WITHIN_S, read_bufsize=READ_AHEAD_BYTES
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address, port, ssl_context=context, backlog=BACKLOG).start()
        except OSError as error:
            raise _cannot_listen(address, port, error) from error
        host, number = runner.addresses[0][:2]
        yield f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
    finally:
        await runner.cleanup()


async def _see_that_it_can_listen(address: str, port: int) -> None:
    """Before anything is started, a supervisor above all, which outlives its agent. Raises AgentCannotStart."""
    try:
        trial = await asyncio.get_running_loop().create_server(asyncio.Protocol, address, port, start_serving=False)
    except OSError as error:
        raise _cannot_listen(address, port, error) from error
    trial.close()


def _cannot_listen(address: str, port: int, error: OSError) -> AgentCannotStart:
    return AgentCannotStart(f"cannot listen on {address} port {port}: {error}", hint="choose another")


def _end_on_signals(agent: Agent) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.ended.set)


def parse_listen(text: str) -> tuple[str, int]:
    """`address:port`, an IPv6 address in brackets. Raises AgentCannotStart."""
    address, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AgentCannotStart(f"{text!r} is no address:port", hint="for example 127.0.0.1:7400")
    return address.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)
