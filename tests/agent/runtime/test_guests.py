"""Guests from start to end, with real programs, and what survives the death of each part."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from agent.api.processes import Endpoint, Ready
from agent.runtime import GuestExited, GuestFailed, Preopen, RuntimeUnavailable
from agent.supervisor import wire as supervisor_wire
from agent.supervisor.client import SupervisorClient, connect
from agent.supervisor.guest_record import EXIT_UNKNOWN
from tests.agent.runtime.support import (
    DEADLINE_S,
    IS_ROOT,
    OTHER_UID,
    descendants,
    http_get,
    is_alive,
    needs_root,
    network,
    order,
    output_of,
    output_path,
    supervisor,
    until,
)
from tests.agent.service.daemon import processes_of
from tests.ports import free_port
from tests.tools.command import environment


async def exit_of(client: SupervisorClient, guest: str) -> GuestExited:
    async with asyncio.timeout(DEADLINE_S):
        async for exited in client.exits():
            if exited.state.guest == guest:
                return exited
    raise AssertionError("the connection was closed")


async def run_to_end(client: SupervisorClient, directory: Path, guest: str, program: str, *args: str) -> GuestExited:
    await client.spawn(order(directory, guest, program, *args))
    return await exit_of(client, guest)


@pytest.mark.parametrize(
    ("program", "args", "code"),
    [
        ("core", ("exit", "0"), 0),
        ("core", ("exit", "7"), 7),
        ("probe", ("exit", "0"), 0),
        ("probe", ("exit", "7"), 1),
        ("probe", ("trap",), 134),
        ("probe", ("recurse",), 134),
    ],
)
def test_the_exit_code_is_the_programs(tmp_path: Path, program: str, args: tuple[str, ...], code: int) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            state = (await run_to_end(client, tmp_path, "job-1", program, *args)).state
            assert state.exit_code == code
            assert bool(state.exit_reason) == (code == 134)
            assert not state.serving

    asyncio.run(scenario())


def test_a_guest_sees_its_arguments_environment_and_directories_and_no_others(tmp_path: Path) -> None:
    volume, config = tmp_path / "volume", tmp_path / "config"
    volume.mkdir()
    config.mkdir()
    (config / "settings").write_text("from the config")
    preopens = (Preopen(str(volume), "/data", True), Preopen(str(config), "/etc", False))
    tried = [
        ("args", "a b", "ü"),
        ("env",),
        ("read", "/etc/settings"),
        ("write", "/data/x", "y"),
        ("write", "/etc/settings", "z"),
        ("read", "/etc/passwd"),
        ("read", "/etc/../../passwd"),
    ]

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for number, args in enumerate(tried):
                job = order(tmp_path, f"job-{number}", "probe", *args, env={"COLOR": "blue"}, preopens=preopens)
                await client.spawn(job)
                await exit_of(client, job.guest)

    os.environ["LOWCLOUD_TEST_SECRET"] = "not for guests"
    asyncio.run(scenario())
    assert "a b" in output_of(tmp_path, "job-0")
    assert "ü" in output_of(tmp_path, "job-0")
    assert output_of(tmp_path, "job-1").split() == ["COLOR=blue"]
    assert "from the config" in output_of(tmp_path, "job-2")
    assert (volume / "x").read_text() == "y"
    assert (config / "settings").read_text() == "from the config"
    assert "denied" in output_of(tmp_path, "job-4")
    assert "denied" in output_of(tmp_path, "job-5")
    assert "denied" in output_of(tmp_path, "job-6")


def test_memory_beyond_the_limit_is_refused_to_the_program(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            await client.spawn(order(tmp_path, "small-1", "probe", "alloc", "200", memory_bytes=32 << 20))
            assert (await exit_of(client, "small-1")).state.exit_code != 0
            await client.spawn(order(tmp_path, "large-1", "probe", "alloc", "200", memory_bytes=256 << 20))
            assert (await exit_of(client, "large-1")).state.exit_code == 0

    asyncio.run(scenario())


def test_output_of_both_streams_is_kept_and_rotated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            await run_to_end(client, tmp_path, "out-1", "probe", "print", "100")
            await run_to_end(client, tmp_path, "err-1", "probe", "stderr", "100")
            await run_to_end(client, tmp_path, "flood-1", "core", "print", "400000")

    asyncio.run(scenario())
    assert len(output_of(tmp_path, "out-1").splitlines()) == 100
    assert len(output_of(tmp_path, "err-1").splitlines()) == 100
    files = sorted(tmp_path.glob("flood-1.log*"))
    assert len(files) > 1
    assert all(file.stat().st_size <= (4 << 20) for file in files)


def test_a_guest_runs_on_the_cpus_it_was_given_and_moves(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            state = await client.spawn(order(tmp_path, "spin-1", "probe", "spin", cpus=(0,)))
            assert os.sched_getaffinity(state.pid) == {0}
            every = tuple(sorted(os.sched_getaffinity(0)))
            await client.set_cpus("spin-1", every)
            assert os.sched_getaffinity(state.pid) == set(every)

    asyncio.run(scenario())


@needs_root
def test_a_guest_runs_as_the_user_it_was_given_without_capabilities(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for guest, uid in (("own-1", OTHER_UID), ("agents-1", None)):
                state = await client.spawn(order(tmp_path, guest, "probe", "spin", uid=uid))
                status = status_of(state.pid)
                assert set(status["Uid"].split()) == {str(uid or 0)}
                assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
                assert status["NoNewPrivs"] == "1"
                assert status["Seccomp"] == "2"

    asyncio.run(scenario())


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_killing_is_idempotent_and_ends_a_program_that_never_looks_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            state = await client.spawn(order(tmp_path, "spin-1", "probe", "spin"))
            ended = await client.kill("spin-1")
            assert ended.exit_code == 128 + signal.SIGKILL
            assert not is_alive(state.pid)
            assert await client.kill("spin-1") == ended
            assert await client.guests() == {}

    asyncio.run(scenario())


def test_code_that_is_none_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            (tmp_path / "no.code").write_bytes(b"this is not compiled code")
            broken = msgspec.structs.replace(order(tmp_path, "bad-1", "probe"), code_path=str(tmp_path / "no.code"))
            with pytest.raises(GuestFailed, match="cannot be loaded"):
                await client.spawn(broken)
            missing = msgspec.structs.replace(
                order(tmp_path, "bad-2", "probe"), preopens=(Preopen(str(tmp_path / "absent"), "/data", True),)
            )
            with pytest.raises(GuestFailed, match="absent"):
                await client.spawn(missing)
            with pytest.raises(GuestFailed, match="no sockets"):
                await client.spawn(order(tmp_path, "bad-3", "core", listen={"http": Endpoint("127.0.0.1", 1)}))
            assert await client.guests() == {}

    asyncio.run(scenario())


AGENT_THAT_IS_KILLED = """
import asyncio, os, pathlib, msgspec
from agent.runtime import GuestOrder
from agent.supervisor.client import connect

async def main():
    client = await connect(pathlib.Path({directory!r}))
    for order in msgspec.json.decode({orders!r}, type=list[GuestOrder]):
        await client.spawn(order)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.usefixtures(network.__name__)
def test_the_agent_killed_finds_its_guests_their_output_and_their_ends(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    orders = [
        order(tmp_path, "web-1", "web-1", listen={"http": endpoint}),
        order(tmp_path, "job-1", "core", "sleep", "300"),
    ]
    agent = AGENT_THAT_IS_KILLED.format(directory=str(tmp_path), orders=msgspec.json.encode(orders).decode())

    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", agent)
        assert await process.wait() == -signal.SIGKILL
        await until(lambda: http_or_nothing(endpoint) != "", "the guest serves without an agent")
        async with supervisor(tmp_path) as client:
            exited = await exit_of(client, "job-1")
            assert exited.state.exit_code == 0
            states = await client.guests()
            assert states["web-1"].serving
            await client.forget("job-1")
            assert set(await client.guests()) == {"web-1"}

    asyncio.run(scenario())


def http_or_nothing(endpoint: Endpoint) -> str:
    try:
        return http_get(endpoint)
    except OSError:
        return ""


@pytest.mark.usefixtures(network.__name__)
def test_the_zygote_killed_is_replaced_and_guests_do_not_notice(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            await client.spawn(order(tmp_path, "web-1", "web-1", listen={"http": endpoint}))
            await client.wait_ready("web-1", Ready("http"), deadline_s=DEADLINE_S)
            for number in range(3):
                zygote = next(pid for pid in descendants(client.supervisor_pid) if name_of(pid) == "lowcloud-zygote")
                os.kill(zygote, signal.SIGKILL)
                await client.spawn(order(tmp_path, f"job-{number}", "core", "exit", "0"))
                assert (await exit_of(client, f"job-{number}")).state.exit_code == 0
            assert (await client.guests())["web-1"].serving
            assert await asyncio.to_thread(http_get, endpoint) != ""

    asyncio.run(scenario())


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def waiting_in_pipe(pid: int) -> int:
    """Bytes of output that nobody has read."""
    reading = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    answer = bytearray(4)
    fcntl.ioctl(reading, termios.FIONREAD, answer)
    os.close(reading)
    return int.from_bytes(answer, sys.byteorder)


async def killed(client: SupervisorClient) -> None:
    """Kill the supervisor; the client notices."""
    os.kill(client.supervisor_pid, signal.SIGKILL)
    with pytest.raises(RuntimeUnavailable):
        await exit_of(client, "none")
    with pytest.raises(RuntimeUnavailable):
        await client.guests()
    await client.close()


@pytest.mark.usefixtures(network.__name__)
def test_the_supervisor_killed_is_noticed_and_its_successor_takes_its_guests_over(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        data = tmp_path / "data"
        data.mkdir()
        volume = (Preopen(str(data), "/data", True),)
        first = await connect(tmp_path)
        kv = await first.spawn(order(tmp_path, "kv-1", "kv", listen={"kv": endpoint}, preopens=volume))
        await first.wait_ready("kv-1", Ready("kv"), deadline_s=DEADLINE_S)
        asks = order(tmp_path, "asks-1", "client", "--interval-ms", "20", connect_to={"kv": endpoint})
        asking = await first.spawn(asks)
        await until(lambda: "connected" in output_of(tmp_path, "asks-1"), "it has asked")
        await killed(first)
        kept = len(output_of(tmp_path, "asks-1"))
        await until(lambda: waiting_in_pipe(asking.pid) > 1000, "it goes on printing with nobody there")
        async with supervisor(tmp_path) as second:
            await until(lambda: len(output_of(tmp_path, "asks-1")) > kept + 1000, "nothing of that is lost")
            states = await second.guests()
            assert {state.pid for state in states.values()} == {kv.pid, asking.pid}
            assert all(state.serving and state.exit_code is None for state in states.values())
            said = len(output_of(tmp_path, "asks-1"))
            await until(lambda: len(output_of(tmp_path, "asks-1")) > said + 100, "what it prints is kept")
            # A new connection is a question that the successor answers; the server's next version gets the listener.
            said = len(output_of(tmp_path, "asks-1"))
            await second.kill("kv-1")
            await second.spawn(order(tmp_path, "kv-2", "kv", listen={"kv": endpoint}, preopens=volume))
            await until(lambda: "connected" in output_of(tmp_path, "asks-1")[said:], "it has connected again")
            os.kill(asking.pid, signal.SIGKILL)
            assert (await exit_of(second, "asks-1")).state.exit_code == EXIT_UNKNOWN

    asyncio.run(scenario())


@pytest.mark.usefixtures(network.__name__)
def test_a_successor_ends_a_guest_whose_output_it_cannot_keep_and_takes_the_others_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = await connect(tmp_path)
        deaf, other = [await first.spawn(order(tmp_path, guest, "probe", "spin")) for guest in ("deaf-1", "other-1")]
        for guest in ("deaf-1", "other-1"):
            await first.wait_ready(guest, None, deadline_s=DEADLINE_S)
        await killed(first)
        output_path(tmp_path, "deaf-1").unlink()
        output_path(tmp_path, "deaf-1").mkdir()
        async with supervisor(tmp_path) as second:
            assert [state.pid for state in (await second.guests()).values()] == [other.pid]
            assert not is_alive(deaf.pid)

    asyncio.run(scenario())


@pytest.mark.usefixtures(network.__name__)
def test_a_successor_ends_the_guests_that_did_not_serve_yet(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        first = await connect(tmp_path)
        old = await first.spawn(order(tmp_path, "web-1", "web-1", listen={"http": endpoint}))
        await first.wait_ready("web-1", Ready("http"), deadline_s=DEADLINE_S)
        dark = await first.spawn(order(tmp_path, "web-2", "web-2", listen={"http": endpoint}))
        await first.wait_ready("web-2", Ready("http"), deadline_s=DEADLINE_S)
        await killed(first)
        async with supervisor(tmp_path) as second:
            assert [state.pid for state in (await second.guests()).values()] == [old.pid]
            assert not is_alive(dark.pid)
            assert "1.0" in await asyncio.to_thread(http_get, endpoint)

    asyncio.run(scenario())


@pytest.mark.skipif(not IS_ROOT, reason="needs root: mounts a small tmpfs")
def test_a_guest_that_ends_while_the_disk_is_full_harms_no_other(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    disk = tmp_path / "disk"
    disk.mkdir()

    async def scenario() -> None:
        async with supervisor(disk) as client:
            await client.spawn(order(disk, "web-1", "web-1", listen={"http": endpoint}))
            await client.wait_ready("web-1", Ready("http"), deadline_s=DEADLINE_S)
            await client.flip("web-1")
            await client.spawn(order(disk, "spin-1", "probe", "spin"))
            fill(disk / "filler")
            os.kill((await client.guests())["spin-1"].pid, signal.SIGKILL)
            assert (await exit_of(client, "spin-1")).state.exit_code == 128 + signal.SIGKILL
            assert (await client.guests())["web-1"].serving
            assert await asyncio.to_thread(http_get, endpoint) != ""
            (disk / "filler").unlink()

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], check=True)
    try:
        asyncio.run(scenario())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_one_supervisor_at_most_runs_in_a_state_directory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            others = await asyncio.gather(*(connect(tmp_path) for _ in range(3)))
            assert {other.supervisor_pid for other in others} == {client.supervisor_pid}
            for other in others:
                await other.close()

    asyncio.run(scenario())


def test_a_supervisor_whose_agent_has_gone_while_it_starts_does_not_stay(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as if the agent had been killed
    words = [sys.executable, "-P", "-m", "agent.supervisor.main", str(tmp_path)]
    process = subprocess.Popen(words, env=environment(), stderr=writing)
    os.close(writing)
    assert process.wait(DEADLINE_S) != 0
    assert not (tmp_path / supervisor_wire.SOCKET_NAME).exists()
    assert processes_of(tmp_path) == []


def test_a_long_state_directory_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        async with supervisor(deep) as client:
            assert await client.guests() == {}

    asyncio.run(scenario())


def test_what_is_not_the_protocol_is_cut_off_and_harms_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\x05\x00\x00\x00hello"):
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / supervisor_wire.SOCKET_NAME))
                writer.write(nonsense)
                async with asyncio.timeout(DEADLINE_S):
                    await reader.read()
                writer.close()
            assert await client.guests() == {}

    asyncio.run(scenario())


@pytest.mark.usefixtures(network.__name__)
def test_many_starts_and_stops_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            # Without a namespace: one would be held open for a while.
            await client.spawn(order(tmp_path, "warm-0", "core", "exit", "0", network="listeners"))
            await exit_of(client, "warm-0")
            await client.forget("warm-0")
            before, begun = open_descriptors(client.supervisor_pid), time.monotonic()
            endpoint = Endpoint("127.0.0.1", free_port())
            for number in range(40):
                await client.spawn(order(tmp_path, f"web-{number}", "web-1", listen={"http": endpoint}))
                await client.wait_ready(f"web-{number}", None, deadline_s=DEADLINE_S)
                await client.kill(f"web-{number}")
                await client.forget(f"web-{number}")
            await until(lambda: open_descriptors(client.supervisor_pid) == before, "nothing is held open any more")
            assert await client.guests() == {}
            assert len(descendants(client.supervisor_pid)) == 1
            assert time.monotonic() - begun < 30

    asyncio.run(scenario())
