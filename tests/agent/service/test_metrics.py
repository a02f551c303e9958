"""What an operator, or a monitoring system with a reader's certificate, sees of the processes of a host."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

import aiohttp
import pytest

from agent import tls
from agent.api.calls import Restart, Start
from agent.api.facts import ProcessState
from agent.api.journal import Event
from agent.api.processes import spec_digest
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.errors import CallRefused
from agent.daemon.usage import Running, open_sockets, usage_of
from agent.main import listening
from tests.agent.service.support import HOST, MemoryRuntime, authority, host, put, run, until, wasm, web

LINE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\n]*"(,[a-z_]+="[^"\n]*")*\})? -?[0-9.e+-]+')


def test_what_a_process_takes_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    guest = Running("web", os.getpid(), web("b3:" + 64 * "0", volume={"/data": "files"}), tmp_path)
    (before,) = usage_of([guest], lambda _: 5000)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        accepted, _ = server.accept()
        (after,) = usage_of([guest], lambda _: 5000)
        accepted.close()
        assert ours.fileno() >= 0
    assert after.connections == before.connections + 2
    assert after.cpu_s >= before.cpu_s > 0
    assert after.memory_bytes > 1 << 20
    assert 105_000 <= after.disk_bytes < 120_000


def test_a_process_that_has_gone_takes_nothing(tmp_path: Path) -> None:
    (usage,) = usage_of([Running("web", 1 << 22, web("b3:" + 64 * "0"), tmp_path / "gone")], lambda _: 0)
    assert (usage.cpu_s, usage.memory_bytes, usage.disk_bytes, usage.connections) == (0, 0, 0, 0)


def test_a_listener_and_a_connection_that_nobody_has_accepted_are_none() -> None:
    line = "0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0 100 0 0 10 0"
    rows = [line.format(state="0A", inode=11), line.format(state="01", inode=12), line.format(state="01", inode=0)]
    assert open_sockets("\n".join(["  sl  local_address rem_address st", *rows])) == {12}


def test_prometheus_reads_metrics_with_a_readers_certificate_and_may_change_nothing() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm("one"))
        spec = web(one)
        reader = authority().issue(tmp / "reader", "reader:prometheus")
        async with (
            host(tmp / "state") as cloud,
            listening(cloud.agent, tls.server_context(tmp / "state" / "credentials"), "127.0.0.1", 0) as address,
            AgentClient(HOST, address, reader) as client,
            aiohttp.ClientSession() as session,
        ):
            await cloud.ask(Start(spec))
            assert [status.process for status in await client.processes()] == ["web"]
            for forbidden in (cloud_call(client, spec_digest(spec)), client.shut_down(), first_piece(client)):
                with pytest.raises(CallRefused, match="may not ask this"):
                    await forbidden
            url = f"https://{address}{Routes.METRICS}"
            context = tls.client_context(reader)
            async with session.get(url, ssl=context, server_hostname=tls.server_name(HOST)) as answer:
                text = await answer.text()
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(LINE.fullmatch(line) for line in lines)
        assert 'lowcloud_process_state{process="web",state="running"} 1' in lines
        assert 'lowcloud_process_restarts_total{process="web"} 0' in lines
        names = {line.partition("{")[0].partition(" ")[0] for line in lines}
        assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} >= names

    run(work)


async def cloud_call(client: AgentClient, expect: str) -> None:
    from agent.api.calls import Envelope

    await client.call(Envelope(call=Restart("web", expect=expect, nonce="12345678")))


async def first_piece(client: AgentClient) -> None:
    async for _ in client.output("web"):
        return


def test_a_process_that_ends_again_and_again_shows_it() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm("one"))
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            for count in (1, 2, 3):
                runtime.ends(runtime.alive("web")[0].guest, 7)

                async def again(count: int = count) -> bool:
                    status = await cloud.status("web")
                    return status is not None and (status.restarts, status.state) == (count, ProcessState.RUNNING)

                await until(again)
            status = await cloud.status("web")
            assert status is not None
            assert "exit code 7" in status.reason
            assert len(await cloud.events(Event.EXITED)) == 3

    run(work)


def test_what_is_read_is_asked_for_side_by_side() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm("one"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            answers = await asyncio.gather(*(cloud.client.usage() for _ in range(8)))
            assert {usage.process for answer in answers for usage in answer} == {"web"}

    run(work)
