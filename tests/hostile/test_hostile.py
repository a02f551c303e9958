"""Guests that try to get out, or to take what others need. Each attempt fails, is seen from outside, and harms nobody:
beside every one of them a web server goes on answering, and not one of its requests may fail.

What native code could do that had broken out of the engine is in `tests/agent/runtime/test_sandbox.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from agent.api.answers import Reason
from agent.api.calls import CreateVolume, Envelope, Start
from agent.api.facts import ProcessState, ProcessStatus
from agent.api.journal import Event
from agent.api.processes import Endpoint, ProcessSpec
from agent.client.client import AgentClient
from agent.client.errors import CallRefused
from agent.daemon.networking import DEFAULT, Mode
from agent.sandbox import privileges
from agent.supervisor.output_pipe import FILE_BYTES, FILES, PIECE_BYTES
from cas.digest import Digest
from tests import guests as test_guests
from tests.agent.service.daemon import Daemon, Load, both_networks, daemon, load, needs_guests, web
from tests.agent.service.support import put, run, until
from tests.ports import free_port
from tools import guests

MIB = 1 << 20
NO_SPACE = "denied 51"
TABLE_BOMB = """(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (table $t 1 funcref)
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $more
      (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 1000000)) (i32.const -1))))
    (call $exit (i32.const 9))))"""
THREADS = """(module
  (import "wasi" "thread-spawn" (func $spawn (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $spawn (i32.const 0)))))"""

pytestmark = needs_guests


class Scene:
    """A host with a neighbour that serves, and somebody who attacks."""

    def __init__(
        self, host: Daemon, client: AgentClient, neighbour: Load, port: int, programs: dict[str, Digest]
    ) -> None:
        self.host = host
        self.client = client
        self.neighbour = neighbour
        self.port = port
        self.programs = programs

    async def attack(self, program: str, *args: str, **fields: Any) -> None:
        spec = ProcessSpec(
            name="attacker",
            binary=self.programs[program],
            args=args,
            **{"restart": "never", "cores_milli": 100, "memory_bytes": 16 * MIB, **fields},
        )
        await self.client.call(Envelope(call=Start(spec)))

    async def output(self) -> str:
        pieces = [piece async for piece in self.client.output("attacker", tail_bytes=MIB)]
        return b"".join(pieces).decode(errors="replace")

    async def said(self, word: str) -> str:
        """What it has printed, once this word is in it."""

        async def found() -> str:
            text = await self.output()
            return text if word in text else ""

        text: str = await until(found)
        return text

    async def ended(self) -> ProcessStatus:
        """How the host shows it once it has ended."""

        async def status() -> ProcessStatus | None:
            found = await self.host.status("attacker")
            return found if found is not None and found.state is ProcessState.EXITED else None

        found: ProcessStatus = await until(status)
        return found

    async def neighbour_answers(self, times: int = 20) -> None:
        before = self.neighbour.served
        await until(lambda: self.neighbour.served >= before + times)


@asynccontextmanager
async def scene(tmp: Path, before: tuple[str, ...] = (), network: Mode = DEFAULT) -> AsyncIterator[Scene]:
    files = {name: test_guests.path(name).read_bytes() for name in test_guests.NAMES}
    files |= {"web": guests.path("web-1").read_bytes()}
    files |= {"tables": bytes(wasmtime.wat2wasm(TABLE_BOMB)), "threads": bytes(wasmtime.wat2wasm(THREADS))}
    digests = put(tmp / "state", *files.values(), b"kept = true\n")
    programs = dict(zip([*files, "file"], digests, strict=True))
    port = free_port()
    async with daemon(tmp, before, network) as host, host.client() as client:
        await client.call(Envelope(call=Start(web(programs["web"], port))))
        async with load(port) as neighbour:
            here = Scene(host, client, neighbour, port, programs)
            await here.neighbour_answers(1)
            yield here
            await here.neighbour_answers()
        assert neighbour.failures == []


def against(work: Callable[[Scene], Awaitable[None]], before: tuple[str, ...] = (), network: Mode = DEFAULT) -> None:
    async def whole(tmp: Path) -> None:
        (tmp / "state").mkdir()
        async with scene(tmp, before, network) as here:
            await work(here)

    run(whole)


WITHOUT_PRIVILEGES = (
    "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all",
)  # fmt: skip
"""The agent without a single capability, which to the kernel is an ordinary user (who here owns the checkout)."""


@pytest.mark.parametrize("before", [(), WITHOUT_PRIVILEGES], ids=["privileged", "unprivileged"])
def test_no_path_leads_out_of_a_guests_directories(before: tuple[str, ...]) -> None:
    async def attempt(here: Scene) -> None:
        await here.client.call(Envelope(call=CreateVolume("kv", 4 * MIB)))
        await here.attack(
            "hostile", "read-outside", config={"/etc/app.toml": here.programs["file"]}, volume={"/data": "kv"},
            disk_bytes=MIB,
        )  # fmt: skip
        text = await here.said("done read-outside")
        read = [line for line in text.splitlines() if line.startswith("got") and "link " not in line]
        assert read == [], read
        assert "root:" not in text
        assert "PATH=" not in text
        assert text.count("denied") > 300
        assert (await here.ended()).reason
        rows = {row.name: row for row in (await here.client.host()).guarantees}
        privileged = os.geteuid() == 0 and not before
        assert rows["own-user"].given == rows["disk"].given == privileged, rows
        assert rows["files"].given

    against(attempt, before)


@both_networks
def test_what_is_not_listed_cannot_be_reached_or_opened(network: Mode) -> None:
    async def attempt(here: Scene) -> None:
        here_only = {"kv": Endpoint("127.0.0.1", free_port())}
        for number, (args, word) in enumerate([
            (("connect", "127.0.0.1", str(here.port)), "connect denied access-denied"),
            (("connect", "127.0.0.1", here.host.address.rpartition(":")[2]), "connect denied access-denied"),
            (("connect", "169.254.169.254", "80"), "connect denied access-denied"),
            (("udp-send", "127.0.0.1", "53", "x"), "bind denied"),
            (("resolve", "localhost"), "resolve denied"),
        ]):  # fmt: skip
            spec = ProcessSpec(
                name=f"attacker-{number}", binary=here.programs["probe"], args=args, restart="never", cores_milli=100,
                connect=here_only,
            )  # fmt: skip
            await here.client.call(Envelope(call=Start(spec)))

            async def told(name: str = spec.name, word: str = word) -> bool:
                return word in b"".join([piece async for piece in here.client.output(name)]).decode()

            await until(told)
        said = b"".join([piece async for piece in here.client.output("attacker-0")]).decode()
        assert f"[lowcloud] it may not connect to 127.0.0.1:{here.port}/tcp" in said

    against(attempt, network=network)


@both_networks
def test_a_neighbours_address_cannot_be_taken_and_the_refusal_says_what_was_tried(network: Mode) -> None:
    async def attempt(here: Scene) -> None:
        own = {"http": Endpoint("127.0.0.1", free_port())}
        with pytest.raises(CallRefused) as caught:
            await here.attack("probe", "listen", str(here.port), listen=own)
        assert caught.value.refusal.reason is Reason.NOT_READY
        assert f"it may not listen on 0.0.0.0:{here.port}/tcp" in caught.value.refusal.message
        events = [entry.event for entry in await here.client.journal() if entry.process == "attacker"]
        assert Event.CALL_FAILED in events

    against(attempt, network=network)


@pytest.mark.parametrize(("program", "args"), [("probe", ("alloc", "4000")), ("tables", ())])
def test_memory_bombs_end_at_their_limit(program: str, args: tuple[str, ...]) -> None:
    async def attempt(here: Scene) -> None:
        await here.attack(program, *args)
        status = await here.ended()
        assert "ended with exit code" in status.reason
        if program == "probe":
            assert "denied MiB" in await here.output()
        exited = [entry for entry in await here.client.journal() if entry.process == "attacker"]
        assert exited[-1].detail

    against(attempt)


def test_a_program_that_wants_threads_is_refused_before_it_starts() -> None:
    async def attempt(here: Scene) -> None:
        with pytest.raises(CallRefused) as caught:
            await here.attack("threads")
        assert caught.value.refusal.reason is Reason.BAD_BINARY

    against(attempt)


@pytest.mark.skipif(bool(privileges.no_images()), reason="needs the right to mount: without it disk limits are soft")
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("volume", "fill"),
        ("volume", "many-files"),
        ("scratch", "fill"),
        ("scratch", "many-files"),
        ("large scratch", "fill"),
    ],
)
def test_the_disk_ends_for_who_fills_it_and_for_nobody_else(where: str, how: str) -> None:
    async def attempt(here: Scene) -> None:
        fields: dict[str, Any] = {"disk_bytes": MIB if where == "scratch" else 65 * MIB}
        if where == "volume":
            await here.client.call(Envelope(call=CreateVolume("kv", 4 * MIB)))
            fields = {"volume": {"/data": "kv"}}
        before = os.statvfs(here.host.state_dir).f_bfree * os.statvfs(here.host.state_dir).f_frsize
        await here.attack("hostile", how, cores_milli=1000, **fields)
        text = await here.said("done")
        assert NO_SPACE in text, text
        after = os.statvfs(here.host.state_dir).f_bfree * os.statvfs(here.host.state_dir).f_frsize
        assert before - after < 512 * MIB
        facts = await here.client.host()
        assert all(volume.used_bytes <= volume.size_bytes for volume in facts.volumes)

    against(attempt)


def test_descriptors_end_long_before_the_hosts_do() -> None:
    async def attempt(here: Scene) -> None:
        await here.attack("hostile", "hold", disk_bytes=MIB)
        text = await here.said("done hold")
        assert "denied" in text

    against(attempt)


def test_output_without_end_is_kept_to_its_size() -> None:
    async def attempt(here: Scene) -> None:
        await here.attack("probe", "print", "4000000000", cores_milli=1000)
        directory = here.host.state_dir / "output"
        limit = FILES * (FILE_BYTES + PIECE_BYTES)

        def written() -> int:
            total = 0
            for path in directory.rglob("*"):
                with suppress(FileNotFoundError):  # it has just been given another name
                    total += path.stat().st_size if path.is_file() else 0
            return total

        await until(lambda: written() > limit // 2)
        await here.neighbour_answers()
        assert written() <= 2 * limit

    against(attempt)


def test_spinning_on_every_core_leaves_the_others_their_share() -> None:
    async def attempt(here: Scene) -> None:
        for number in range((os.cpu_count() or 1) + 1):
            spec = ProcessSpec(
                name=f"spin-{number}", binary=here.programs["probe"], args=("spin",), restart="never", cores_milli=100
            )
            await here.client.call(Envelope(call=Start(spec)))
        await here.neighbour_answers(50)
        assert all(status.state is ProcessState.RUNNING for status in await here.client.processes())

    against(attempt)
