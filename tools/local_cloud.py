"""A whole cloud on this machine: an agent process for each host of the definition that has a loopback address.

An agent that is started here gets a session of its own, so that Ctrl-C in the terminal reaches the command and not the
agent; its messages go to `.lowcloud/hosts/NAME/agent.log`, its state lies beside. Which process it is stands in
`running.json` with the process's start time, so that a number that the kernel has given to another process since is
never signalled.

Ending goes through the agent's own authenticated shutdown, which ends the guests and their supervisor too. An agent
that was killed has left its guests running on purpose: it is started once more, adopts them, and ends them. Where it
cannot start, its supervisor is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from tools.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from deployer.cloud.cloud import Cloud
    from deployer.language.schema import Host

READY_TIMEOUT_S: Final = 60.0
SHUTDOWN_TIMEOUT_S: Final = 30.0
TERMINATE_TIMEOUT_S: Final = 5.0
MAX_READY_LINE_BYTES: Final = 1 << 16
MAX_RECORD_BYTES: Final = 4096
LOG_TAIL_BYTES: Final = 2000
RECORD_NAME: Final = "running.json"
ERROR_PREFIX: Final = "lowcloud: "
LOG_NAME: Final = "agent.log"
CREDENTIALS_NAME: Final = "credentials"
NETWORKS: Final = ("auto", "listeners", "namespaces")
"""`agent.daemon.networking.MODES`, said here because commands must start fast; the first is the default."""


class AgentNotStarted(CommandError):
    """An agent process ended, or was not ready in time."""


class Record(msgspec.Struct, frozen=True):
    """Which process is a host's agent."""

    host: str
    address: str
    pid: int
    started_ticks: int
    """Clock ticks from boot to the process's start: field 22 of /proc/PID/stat."""


class Started(msgspec.Struct, frozen=True):
    host: str
    address: str
    pid: int
    new: bool
    """False where the agent was running already."""


def loopback_hosts(hosts: Mapping[str, Host]) -> dict[str, str]:
    """The hosts of a definition that this machine can run: name to address:port."""
    from deployer.language.endpoints import is_loopback, parse_host_address

    return {name: host.address for name, host in hosts.items() if is_loopback(parse_host_address(host.address).address)}


def is_local(address: str) -> bool:
    """Whether an agent at this address:port would be one of `up`'s."""
    from deployer.language.endpoints import is_loopback, parse_host_address

    return is_loopback(parse_host_address(address).address)


def sealing_key(cloud: Cloud, host: str) -> str:
    """The public key to which secrets of a host of this machine are sealed, before its agent has ever run."""
    from agent.daemon.sealing import KEY_NAME, SealingKey

    directory = cloud.host_directory(host)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SealingKey(directory / KEY_NAME).public()


# --- starting -------------------------------------------------------------------------------------------------------


def add_network_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default=NETWORKS[0],
        help="which guests get a network namespace: `auto`, those with a UDP listener, where the host can; "
        "`namespaces`, all that use the network; `listeners`, none",
    )


def start_agents(cloud: Cloud, addresses: Mapping[str, str], network: str = NETWORKS[0]) -> list[Started]:
    """An agent for each host, all ready when it returns; those that run already stay. If one does not start, those that
    this call started are ended. Raises AgentNotStarted."""
    started: list[Started] = []
    launched: list[tuple[str, str, subprocess.Popen[bytes]]] = []
    try:
        for host, address in addresses.items():
            record = read_record(cloud.host_directory(host))
            if record is not None and record.address != address:
                _end_agent(record)  # the definition has moved it; its guests stay for the next one
                record = None
            if record is not None:
                started.append(Started(host, record.address, record.pid, new=False))
            else:
                launched.append((host, address, _launch(cloud, host, address, network)))
        deadline = time.monotonic() + READY_TIMEOUT_S
        for host, address, process in launched:
            _wait_ready(cloud, host, process, deadline)
            started.append(Started(host, address, process.pid, new=True))
    except BaseException:
        for host, _, process in launched:
            _end_child(process)
            # It may have started its supervisor already, or be about to; one that has guests is left alone.
            asyncio.run(_end_supervisor(cloud.host_directory(host), only_idle=True))
        raise
    return sorted(started, key=lambda one: list(addresses).index(one.host))


def _launch(cloud: Cloud, host: str, address: str, network: str) -> subprocess.Popen[bytes]:
    directory = cloud.host_directory(host)
    _issue_credentials(cloud, host, address, directory / CREDENTIALS_NAME)
    command = [sys.executable, "-P", "-m", "tools.main", "agent"]
    command += ["--host", host, "--listen", address, "--state", str(directory), "--shared", "--network", network]
    with (directory / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    record = Record(host, address, process.pid, _started_ticks(process.pid) or 0)
    (directory / RECORD_NAME).write_bytes(msgspec.json.encode(record))
    return process


def _issue_credentials(cloud: Cloud, host: str, address: str, to: Path) -> None:
    from deployer.cloud import trust

    if (to / "cert.pem").exists() and trust.days_left(to) > trust.RENEW_BELOW_DAYS:
        return
    trust.issue_host(cloud.authority, host, [address], to)


def _wait_ready(cloud: Cloud, host: str, process: subprocess.Popen[bytes], deadline: float) -> None:
    """Read the one line that an agent prints when it is ready. Raises AgentNotStarted."""
    if process.stdout is None:
        raise AssertionError("started with a pipe")
    log = cloud.host_directory(host) / LOG_NAME
    line = b""
    with process.stdout as pipe:
        while not line.endswith(b"\n") and len(line) < MAX_READY_LINE_BYTES:
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                what = f"was not ready within {READY_TIMEOUT_S:.0f} s"
                raise AgentNotStarted(f"the agent of {host} {what}", hint=f"its messages are in {log}")
            piece = os.read(pipe.fileno(), MAX_READY_LINE_BYTES)
            if not piece:
                raise AgentNotStarted(
                    f"the agent of {host} ended: {_last_words(log)}", hint=f"its messages are in {log}"
                )
            line += piece


def _last_words(log: Path) -> str:
    """What an agent said last: its error, or at least its last line."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    said = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    return (said or lines or ["it said nothing"])[-1]


# --- what runs ------------------------------------------------------------------------------------------------------


def read_record(directory: Path) -> Record | None:
    """The agent that runs in a host's directory, or None."""
    try:
        with (directory / RECORD_NAME).open("rb") as file:
            record = msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None
    return record if _started_ticks(record.pid) == record.started_ticks else None


def started_otherwise(directory: Path) -> bool:
    """Whether an agent runs in a host's directory that is not the one on record: somebody has started it by hand."""
    from agent.main import AgentCannotStart, hold

    if read_record(directory) is not None or not directory.exists():
        return False
    try:
        with hold(directory):
            return False
    except AgentCannotStart:
        return True


def ended_since(cloud: Cloud, one: Started) -> bool:
    """Whether `down` has ended this agent since, or another has taken its place. One that was only killed has left its
    guests to whoever started it."""
    try:
        with (cloud.host_directory(one.host) / RECORD_NAME).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=Record).pid != one.pid
    except FileNotFoundError:
        return True
    except (OSError, msgspec.MsgspecError):
        return False


def local_hosts(cloud: Cloud) -> list[str]:
    """The hosts that `up` has ever started here."""
    return sorted(path.parent.name for path in (cloud.state / "hosts").glob(f"*/{RECORD_NAME}"))


def _started_ticks(pid: int) -> int | None:
    """None for a process that is gone, or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


# --- ending ---------------------------------------------------------------------------------------------------------


def stop_agents(cloud: Cloud, hosts: Iterable[str], tell: Callable[[str], None]) -> list[str]:
    """End the agents of these hosts, their guests and their supervisors; the hosts where something was running. What
    they ran comes back with the next agent of that directory."""
    stopped = []
    for host in hosts:
        directory = cloud.host_directory(host)
        record = read_record(directory)
        if record is None and started_otherwise(directory):
            tell(f"the agent of {host} was not started by `up`: end it where it was started; nothing of it was ended")
            continue
        if record is None and not _left_guests(directory):
            (directory / RECORD_NAME).unlink(missing_ok=True)
            continue
        if record is None:
            record = _adopt(cloud, host, tell)
        if record is not None:
            _shut_down(cloud, record, tell)
        if _left_guests(directory):
            asyncio.run(_end_supervisor(directory))
        (directory / RECORD_NAME).unlink(missing_ok=True)
        stopped.append(host)
    return stopped


def _left_guests(directory: Path) -> bool:
    """Whether a supervisor still runs there, with the guests of an agent that is gone."""
    from agent.supervisor.wire import SOCKET_NAME

    try:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")  # a Unix socket's own path may be too long
        return True
    except OSError:
        return False
    finally:
        os.close(folder)


def _adopt(cloud: Cloud, host: str, tell: Callable[[str], None]) -> Record | None:
    """Start the agent that left guests behind once more: it takes them over, ends them, and its journal says so. None
    where it does not start."""
    directory = cloud.host_directory(host)
    try:
        address = msgspec.json.decode((directory / RECORD_NAME).read_bytes(), type=Record).address
        start_agents(cloud, {host: address})
    except (OSError, msgspec.MsgspecError, AgentNotStarted) as error:
        tell(f"{host} left guests behind and does not start again ({error}); ending them without it")
    return read_record(directory)


async def _end_supervisor(directory: Path, *, only_idle: bool = False) -> None:
    from agent.runtime import RuntimeUnavailable
    from agent.supervisor.client import connect

    with contextlib.suppress(RuntimeUnavailable):
        supervisor = await connect(directory)
        if only_idle and await supervisor.guests():
            await supervisor.close()
        else:
            await supervisor.shut_down()


def _shut_down(cloud: Cloud, record: Record, tell: Callable[[str], None]) -> None:
    from agent.client.errors import AgentError

    with _process_handle(record) as handle:
        try:
            asyncio.run(_ask_to_shut_down(cloud, record))
        except AgentError as error:
            tell(f"{record.host} does not end when asked ({error}); ending it by signal")
        else:
            if _wait_end(handle, SHUTDOWN_TIMEOUT_S):
                return
            tell(f"{record.host} has not ended after {SHUTDOWN_TIMEOUT_S:.0f} s; ending it by signal")
        _terminate_handle(handle)


def _end_agent(record: Record) -> None:
    """End an agent and leave its guests running."""
    with _process_handle(record) as handle:
        _terminate_handle(handle)


async def _ask_to_shut_down(cloud: Cloud, record: Record) -> None:
    from agent.client.client import AgentClient

    async with AgentClient(record.host, record.address, cloud.credentials) as client:
        await client.shut_down(guests=True)


@contextlib.contextmanager
def _process_handle(record: Record) -> Iterator[int | None]:
    """A descriptor of exactly this process, or None where it is gone."""
    try:
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle if _started_ticks(record.pid) == record.started_ticks else None
    finally:
        os.close(handle)


def _wait_end(handle: int | None, timeout_s: float) -> bool:
    return handle is None or bool(select.select([handle], [], [], timeout_s)[0])


def _terminate_handle(handle: int | None) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if handle is not None and not _wait_end(handle, 0):
            signal.pidfd_send_signal(handle, number)
        if _wait_end(handle, TERMINATE_TIMEOUT_S):
            return


def _end_child(process: subprocess.Popen[bytes]) -> None:
    """End an agent that this call has launched and that is of no use."""
    process.terminate()
    try:
        process.wait(TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
