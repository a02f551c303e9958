"""Whatever arrives at an agent: a clear refusal with the right status, and what runs goes on running."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from agent import tls
from agent.api.answers import Reason, Refusal
from agent.api.calls import MAX_CALL_BYTES, CreateVolume, DeleteVolume, Envelope, Replace, Stage, Start, Stop
from agent.api.processes import Endpoint, Ready
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.errors import CallRefused, HostUnreachable
from agent.daemon.capacity import Limits
from agent.daemon.host import usable_cpus
from agent.daemon.refusal import MISSING_TOLD
from cas.digest import digest_of
from tests.agent.service.support import (
    HOST,
    Cloud,
    authority,
    changed,
    host,
    put,
    run,
    spec_digest,
    wasm,
    web,
)


@asynccontextmanager
async def raw(cloud: Cloud, credentials: Path | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that sends what it is told, without the client's care."""
    context = tls.client_context(credentials or cloud.state_dir.parent / "operator")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


async def send(session: aiohttp.ClientSession, cloud: Cloud, path: str, body: Any = None, **kw: Any) -> Refusal:
    """POST (or GET without a body) what should be refused; the refusal, whose status is checked."""
    method = "GET" if body is None else "POST"
    url = f"https://{cloud.client.address}{path}"
    async with session.request(method, url, data=body, server_hostname=tls.server_name(HOST), **kw) as answer:
        refusal = msgspec.msgpack.decode(await answer.read(), type=Refusal)
        assert answer.status >= 400
        return refusal


async def refused(cloud: Cloud, call: Any) -> Refusal:
    with pytest.raises(CallRefused) as caught:
        await cloud.ask(call)
    return caught.value.refusal


def encoded(**call: Any) -> bytes:
    return msgspec.msgpack.encode({"call": call, "version": 1})


def test_what_is_no_call_is_refused_and_the_process_runs_on() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud, raw(cloud) as session:
            await cloud.ask(Start(web(one)))
            before = cloud.runtime.states.copy()
            for body in (
                b"",
                b"\xc1",
                b"\x91" * 100_000,
                b"\xdf\xff\xff\xff\xff",
                msgspec.msgpack.encode([1, 2]),
                encoded(type="explode"),
                encoded(type="stop", process="web", expect="b3:short"),
                encoded(type="stop", process="../web", expect=one),
                encoded(type="stop", process="web\n", expect=one),
                encoded(type="stop", process="web", expect=one, force=True),
                encoded(type="collect", keep="five"),
                msgspec.msgpack.encode({"call": {"type": "check"}, "version": 2}),
            ):
                refusal = await send(session, cloud, Routes.CALL, body)
                assert refusal.reason is Reason.BAD_REQUEST, body[:40]
            assert (await send(session, cloud, Routes.CALL, bytes(MAX_CALL_BYTES + 1))).reason is Reason.TOO_LARGE
            assert (await send(session, cloud, Routes.CALL, endless())).reason is Reason.TOO_LARGE
            bomb = zlib.compress(bytes(64 << 20))
            refusal = await send(session, cloud, Routes.CALL, bomb, headers={"Content-Encoding": "deflate"})
            assert refusal.reason is Reason.TOO_LARGE
            assert (await send(session, cloud, "/v1/nothing")).reason is Reason.NOT_FOUND
            assert (await send(session, cloud, Routes.JOURNAL + "?after=x")).reason is Reason.BAD_REQUEST
            assert (await send(session, cloud, "/v1/output/..%2f..%2fjournal")).reason is Reason.NOT_FOUND
            assert (await send(session, cloud, "/v1/blobs/b3:00")).reason is Reason.BAD_REQUEST
            assert (await send(session, cloud, Routes.BLOB.format(digest=digest_of(b"?")))).reason is Reason.NOT_FOUND
            assert cloud.runtime.states == before

    run(work)


async def endless() -> AsyncIterator[bytes]:
    """More than any call may have, without saying so first."""
    for _ in range(MAX_CALL_BYTES // 65536 + 2):
        yield bytes(65536)


def test_blobs_that_are_missing_wrong_or_no_programs_are_refused() -> None:
    async def work(tmp: Path) -> None:
        one, text = put(tmp / "state", wasm(), b"no program")
        async with host(tmp / "state") as cloud, raw(cloud) as session:
            await cloud.ask(Start(web(one)))
            before = cloud.runtime.states.copy()
            absent = digest_of(b"never sent")
            for call in (
                Replace(web(absent), expect=spec_digest(web(one))),
                Replace(web(one, config={"/a/b": absent}), expect=spec_digest(web(one))),
                Stage((web(absent), changed(web(one), name="other", config={"/x/y": absent}, listen={}, ready=None))),
            ):
                refusal = await refused(cloud, call)
                assert refusal.reason is Reason.MISSING_BLOBS
                assert refusal.missing == (absent,)
            many = {f"/etc/{number}": digest_of(b"%d" % number) for number in range(MISSING_TOLD + 1)}
            refusal = await refused(cloud, Replace(web(one, config=many), expect=spec_digest(web(one))))
            assert len(refusal.missing) == MISSING_TOLD
            assert f"{MISSING_TOLD + 1} blobs" in refusal.message
            for call in (Replace(web(text), expect=spec_digest(web(one))), Stage((web(text),))):
                assert (await refused(cloud, call)).reason is Reason.BAD_BINARY
            assert (await send(session, cloud, Routes.BLOBS, b"these are no frames" * 100)).reason is Reason.BAD_BLOB
            assert cloud.runtime.states == before

    run(work)


def test_specifications_that_cannot_work_are_refused_before_anything_is_done() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        spec = web(one)
        async with host(tmp / "state") as cloud:
            for wrong in (
                changed(spec, env={"A=B": "x"}),
                changed(spec, args=("zero\0byte",)),
                changed(spec, listen={"http": Endpoint("localhost", 80)}),
                changed(spec, ready=Ready("https")),
                changed(spec, ready=Ready("http", path="/a b\r\nX: y")),
                changed(spec, listen={"http": Endpoint("0.0.0.0", 80), "too": Endpoint("127.0.0.1", 80)}),
                changed(spec, volume={"/data": "a", "/data/b": "b"}),
                changed(spec, volume={"/data": "a"}, config={"/data/x": one}),
                changed(spec, config={"/etc/a": one, "/etc/a/b": one}),
                changed(spec, volume={"/tmp": "a"}, disk_bytes=4096),
            ):
                refusal = await refused(cloud, Start(wrong))
                assert refusal.reason is Reason.BAD_REQUEST
                assert refusal.hint
            assert await cloud.client.processes() == ()
            assert (await cloud.events())[1:] == []

    run(work)


def test_what_does_not_fit_on_the_host_is_refused() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        limits = Limits(cores_milli=1500, memory_bytes=128 << 20, disk_bytes=1 << 20)
        async with host(tmp / "state", limits=limits) as cloud:
            await cloud.ask(Start(web(one)))
            other = changed(web(one, port=9090), name="other", cores_milli=500)
            for wrong in (
                changed(other, cores_milli=501),
                changed(other, memory_bytes=(64 << 20) + 1),
                changed(other, disk_bytes=(1 << 20) + 1),
                changed(other, listen={"http": Endpoint("0.0.0.0", 8080)}),
                changed(other, listen={"http": Endpoint("127.0.0.1", 8080)}),
            ):
                assert (await refused(cloud, Start(wrong))).reason is Reason.NO_ROOM
            assert (await cloud.ask(Start(other))).changed

    run(work)


def test_volumes_grow_stay_and_belong_to_one_process() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        spec = web(one, volume={"/data": "web-data"})
        async with host(tmp / "state") as cloud:
            assert (await refused(cloud, Start(spec))).reason is Reason.NOT_FOUND
            assert (await cloud.ask(CreateVolume("web-data", 1 << 20))).changed
            assert not (await cloud.ask(CreateVolume("web-data", 1 << 20))).changed
            assert (await cloud.ask(CreateVolume("web-data", 2 << 20))).changed
            assert (await refused(cloud, CreateVolume("web-data", 1 << 20))).reason is Reason.UNEXPECTED_STATE
            assert (await refused(cloud, CreateVolume("huge", 1 << 60))).reason is Reason.NO_ROOM
            await cloud.ask(Start(spec))
            other = changed(spec, name="other", listen={}, ready=None)
            assert (await refused(cloud, Start(other))).reason is Reason.IN_USE
            assert (await refused(cloud, DeleteVolume("web-data"))).reason is Reason.IN_USE
            (volume,) = (await cloud.client.host()).volumes
            assert (volume.volume, volume.size_bytes, volume.held_by) == ("web-data", 2 << 20, "web")
            await cloud.ask(Stop("web", expect=spec_digest(spec)))
            assert (await cloud.ask(DeleteVolume("web-data"))).changed
            assert not (await cloud.ask(DeleteVolume("web-data"))).changed

    run(work)


@pytest.mark.parametrize("leaving", ["stop", "replace"])
def test_a_volume_is_held_as_long_as_a_guest_that_has_it_may_run_or_come_back(leaving: str) -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        spec = web(one, volume={"/data": "v"})
        other = changed(spec, name="other", listen={}, ready=None)
        async with host(tmp / "state") as cloud:
            await cloud.ask(CreateVolume("v", 1 << 20))
            await cloud.ask(Start(spec))
            go = cloud.runtime.stop_at("drain")
            leave = Stop("web", spec_digest(spec)) if leaving == "stop" else Replace(web(two), spec_digest(spec))
            call = asyncio.create_task(cloud.ask(leave))
            await cloud.runtime.reached["drain"].wait()
            assert (await refused(cloud, Start(other))).reason is Reason.IN_USE
            assert (await refused(cloud, DeleteVolume("v"))).reason is Reason.IN_USE
            go.set()
            assert (await call).changed
            assert (await cloud.ask(Start(other))).changed

    run(work)


def test_only_operators_may_call() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        other_host = authority().issue(tmp / "other", "host:ams1", host="ams1")
        nobody = authority().issue(tmp / "nobody", "alice")
        async with host(tmp / "state") as cloud:
            body = msgspec.msgpack.encode(Envelope(call=Start(web(one))))
            for credentials in (other_host, nobody):
                async with raw(cloud, credentials) as session:
                    for path, sent in ((Routes.CALL, body), (Routes.HOST, None), (Routes.SHUTDOWN, b"")):
                        assert (await send(session, cloud, path, sent)).reason is Reason.FORBIDDEN
            async with AgentClient(HOST, cloud.client.address, other_host) as peer:
                assert b"".join([part async for part in peer.blob_of_peer(one)]) == wasm()
            assert await cloud.client.processes() == ()

    run(work)


def test_without_a_certificate_of_this_cloud_there_is_no_connection() -> None:
    async def work(tmp: Path) -> None:
        from tests.agent.service.certificates import Authority

        stranger = Authority("stranger").issue(tmp / "stranger", "operator:mallory")
        (stranger / "ca.pem").write_bytes((authority().issue(tmp / "x", "operator:x") / "ca.pem").read_bytes())
        async with host(tmp / "state") as cloud:
            async with AgentClient(HOST, cloud.client.address, stranger) as client:
                with pytest.raises(HostUnreachable):
                    await client.host()
            async with AgentClient("ams1", cloud.client.address, tmp / "operator") as client:
                with pytest.raises(HostUnreachable, match="is not ams1"):
                    await client.host()
            bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
            url = f"https://{cloud.client.address}{Routes.HOST}"
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=bare)) as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.get(url)
            bare.maximum_version = ssl.TLSVersion.TLSv1_2
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=bare)) as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.get(url)

    run(work)


def test_a_host_that_does_not_answer_is_said_so() -> None:
    async def work(tmp: Path) -> None:
        async with host(tmp / "state") as cloud:
            address = cloud.client.address
        async with AgentClient(HOST, address, tmp / "operator") as client:
            with pytest.raises(HostUnreachable) as caught:
                await client.processes()
            assert caught.value.hint

    run(work)


def test_where_agents_share_a_machine_cores_are_nobodys_own() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state", limits=None) as cloud:
            facts = await cloud.client.host()
            assert facts.cores == len(usable_cpus())
            many = web(one, cores_milli=(facts.cores + 1) * 1000)
            assert (await cloud.ask(Start(many))).changed
            assert [order.cpus for order in cloud.runtime.orders.values()] == [()]

    run(work)
