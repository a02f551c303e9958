"""What a host runs, seen from outside: processes in /proc, connections, files. Nothing here asks lowcloud, but for the
process ids of `ps`, which are then held against those that there are."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.fleet.fleet import Fleet
from tests.fleet.worlds import Web, World

DEADLINE_S: Final = 60.0
"""For what ends a moment after a command has: the old versions' last connections."""
ANSWER_S: Final = 30.0
ZYGOTES: Final = 1
DESCRIPTORS: Final = 64
DESCRIPTORS_PER_GUEST: Final = 12


class Runs(NamedTuple):
    """One machine-wide look at processes."""

    parents: Mapping[int, int]
    words: Mapping[int, bytes]

    def supervisor(self, state: Path) -> int | None:
        found = [pid for pid, words in self.words.items() if b"agent.supervisor" in words and _about(state, words)]
        assert len(found) <= 1, f"{len(found)} supervisors of {state.name}"
        return found[0] if found else None

    def children(self, pid: int) -> set[int]:
        return {child for child, parent in self.parents.items() if parent == pid}

    def of(self, state: Path) -> list[int]:
        return [pid for pid, words in self.words.items() if _about(state, words)]


def look() -> Runs:
    parents, words = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                state, parent = stat.rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
                    words[int(entry.name)] = (entry / "cmdline").read_bytes()
    return Runs(parents, words)


def _about(state: Path, words: bytes) -> bool:
    return str(state).encode() in words.split(b"\0")


# --- whether every host runs its part -------------------------------------------------------------------------------


def pids_of(fleet: Fleet) -> dict[str, dict[str, int]]:
    """Host, process, id of the OS process, as `ps` says."""
    found: dict[str, dict[str, int]] = {host: {} for host in fleet.hosts}
    for row in fleet.ask("ps"):
        name, _, host = row["name"].partition("@")
        found[host][name] = row["pid"]
    return found


def check(fleet: Fleet, world: World) -> dict[str, dict[str, int]]:
    """Every host runs exactly its part of this world and nothing is left of others. Returns the process ids. Raises
    AssertionError with all that is wrong."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        pids = pids_of(fleet)
        wrong = [line for host in fleet.hosts for line in _wrong(fleet, world, host, pids[host], look())]
        if not wrong:
            return pids
        assert time.monotonic() < deadline, "\n".join(wrong)
        time.sleep(0.5)


def _wrong(fleet: Fleet, world: World, host: str, pids: Mapping[str, int], runs: Runs) -> Iterator[str]:
    state = fleet.root / host
    wanted = world.of_host(host) if host in world.hosts else {}
    if host in world.hosts and set(pids) != set(wanted):
        yield f"{host} says that it runs {sorted(pids)}, not {sorted(wanted)}"
    supervisor = runs.supervisor(state)
    children = runs.children(supervisor) if supervisor else set()
    if len(children) != len(wanted) + (ZYGOTES if supervisor else 0):
        yield f"{host} has {len(children) - ZYGOTES} guests, not {len(wanted)}"
    if not set(pids.values()) <= children:
        yield f"{host} tells of processes that are not its own: {sorted(set(pids.values()) - children)}"
    for name, port in fleet.ports.items():
        should = wanted.get(name)
        said = answer(fleet.ips[host], port, "GET / HTTP" if isinstance(should, Web) else "COUNT")
        if should is None:
            right = said is None
        else:
            right = said == should.says() if isinstance(should, Web) else (said or "").startswith("COUNT ")
        if not right:
            yield f"{name}@{host} answers {said!r}; it should be {should!r}"
    for folder, most in (("guests", len(wanted)), ("processes", len(wanted))):
        left = sorted(path.name for path in (state / folder).iterdir()) if (state / folder).exists() else []
        if len(left) != most:
            yield f"{host} has {len(left)} entries in {folder}/, not {most}: {left}"
    for pid in [pid for pid in (supervisor, fleet.agents[host].pid) if pid]:
        count = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        if count > DESCRIPTORS + DESCRIPTORS_PER_GUEST * len(wanted):
            yield f"{host}: process {pid} has {count} descriptors open for {len(wanted)} guests"


def answer(ip: str, port: int, question: str) -> str | None:
    """What is said on a new connection; None where nobody listens."""
    try:
        if question.startswith("GET"):
            connection = http.client.HTTPConnection(ip, port, timeout=ANSWER_S)
            with contextlib.closing(connection):
                connection.request("GET", "/")
                return connection.getresponse().read().decode()
        with (
            socket.create_connection((ip, port), timeout=ANSWER_S) as plain,
            plain.makefile("rw", newline="\n") as lines,
        ):
            lines.write(f"{question}\n")
            lines.flush()
            return lines.readline()
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return f"<{error}>"


def check_gone(fleet: Fleet) -> None:
    """After the end: no process, no mount, no loop device is left of any host."""

    def left() -> list[str]:
        runs = look()
        found = [f"process {pid} of {host}" for host in fleet.hosts for pid in runs.of(fleet.root / host)]
        mounts = Path("/proc/self/mountinfo").read_text()
        loops = "".join(_text(path) for path in Path("/sys/block").glob("loop*/loop/backing_file"))
        return found + [
            f"{what} of the fleet" for what, text in (("mount", mounts), ("loop", loops)) if str(fleet.root) in text
        ]

    wait(lambda: not left(), left)


def _text(path: Path) -> str:
    """Of a file of the kernel, which may have gone."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def wait(holds: Callable[[], bool], told: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
