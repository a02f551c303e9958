"""Neighbours that lie, truncate, stall or never end: nothing wrong is kept, nobody waits for ever, they are named."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from agent.api.answers import Reason
from agent.api.fetching import FormAsked, HaveAnswer, HaveQuery, PiecesQuery
from agent.api.neighbours import PeerStatus
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.connections import MAX_REFUSAL_BYTES
from agent.client.errors import BadAnswer, CallRefused
from cas.digest import digest_of
from tests.agent.peering import liars
from tests.agent.peering.liars import ENOUGH, Answer, Liar
from tests.agent.peering.neighbourhood import Neighbourhood, neighbourhood, noise, run
from tests.agent.service.support import WAIT_S, authority, until

MiB = 1 << 20


async def seen(hood: Neighbourhood, name: str, of: str) -> PeerStatus:
    return next(row for row in (await hood.members[name].client.peers()).peers if row.host == of)


@pytest.mark.parametrize(
    ("answer", "banned"),
    [
        (liars.flips, True),
        (liars.truncates, False),
        (liars.stalls, False),
        (liars.goes_on, False),
        (liars.says_nothing_that_makes_sense, True),
    ],
)
def test_a_bad_neighbour_costs_little_and_spoils_nothing(tmp_path: Path, answer: Answer, banned: bool) -> None:
    async def work(tmp: Path) -> None:
        data = noise(3 * MiB)
        liar = Liar(data, answer)
        async with liar.among(tmp, "fra2", "fra3") as (hood, blob):
            await hood.fetch("fra2", [blob], listed=hood.listed([blob]))
            async with asyncio.timeout(WAIT_S):
                await liar.asked.wait()
            await hood.give("fra3", [blob])
            await until(lambda: hood.members["fra2"].has([blob]))
            member = hood.members["fra2"]
            assert member.store.read(blob) == data
            assert member.store.check().damaged == ()
            await until(lambda: not list((member.state_dir / "arriving").iterdir()))  # soon after the blob is there
            row = await seen(hood, "fra2", "fra1")
            assert (row.banned == (blob,)) == banned
            assert row.failures or row.banned or answer is liars.goes_on
            assert liar.sent_bytes < ENOUGH / 2

    run(tmp_path, work)


def test_where_only_liars_have_a_blob_it_stays_missing_and_they_are_told_of(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with Liar(noise(2 * MiB), liars.flips).among(tmp, "fra2") as (hood, blob):
            listed = hood.listed([blob])

            async def told() -> bool:
                return (await hood.fetch("fra2", [blob], listed=listed)).wrong == ("fra1",)

            await until(told)
            assert not hood.members["fra2"].has([blob])
            assert (await seen(hood, "fra2", "fra1")).banned == (blob,)

    run(tmp_path, work)


class Fabulist(Liar):
    """Tells of more than it was asked for."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(noise(MiB), None)
        self._told = answer

    async def have(self, _: web.Request) -> web.Response:
        self.asked.set()
        return web.Response(body=self._told)


@pytest.mark.parametrize(
    "told",
    [
        b"nonsense",
        msgspec.msgpack.encode(HaveAnswer({7: b"\1"})),
        msgspec.msgpack.encode(HaveAnswer({0: b"\xff" * 10})),
        b"\0" * (65 << 20),
    ],
    ids=["no-message", "another-form", "too-many-pieces", "too-large"],
)
def test_an_answer_that_makes_no_sense_is_a_failure_of_the_neighbour(tmp_path: Path, told: bytes) -> None:
    async def work(tmp: Path) -> None:
        liar = Fabulist(told)
        async with liar.among(tmp, "fra2", "fra3") as (hood, blob):
            await hood.fetch("fra2", [blob], listed=hood.listed([blob]))
            await liar.asked.wait()
            await hood.give("fra3", [blob])
            await until(lambda: hood.members["fra2"].has([blob]))

    run(tmp_path, work)


def test_of_what_a_neighbour_has_no_more_is_read_than_was_asked_for(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        data = noise(MiB)
        form = FormAsked(digest_of(data), digest_of(data), MiB, "plain")
        for holding, is_read in ((b"\x0f", True), (bytes(100), False)):
            liar = Fabulist(msgspec.msgpack.encode(HaveAnswer({0: holding})))
            async with (
                liar.listening(authority().issue(tmp / "liar", "host:fra1", host="fra1")) as address,
                AgentClient("fra1", address, authority().issue(tmp / "asker", "host:fra2", host="fra2")) as asker,
            ):
                question = asker.have(HaveQuery((form,), (b"\x0f",)))
                if is_read:
                    assert (await question).holdings == {0: holding}
                else:
                    with pytest.raises(BadAnswer, match="more than"):
                        await question

    run(tmp_path, work)


class Grumbling(Liar):
    """Refuses, and does not come to an end with the reason."""

    async def have(self, request: web.Request) -> web.StreamResponse:
        return await self._send(request, b"", status=400)


def test_of_a_refusal_no_more_is_read_than_a_refusal_has(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        liar = Grumbling(b"", liars.goes_on)
        async with (
            liar.listening(authority().issue(tmp / "liar", "host:fra1", host="fra1")) as address,
            AgentClient("fra1", address, authority().issue(tmp / "asker", "host:fra2", host="fra2")) as asker,
        ):
            with pytest.raises(BadAnswer, match=f"more than {MAX_REFUSAL_BYTES} bytes"):
                await asker.have(HaveQuery((), ()))
        assert liar.sent_bytes < ENOUGH / 2

    run(tmp_path, work)


def test_hosts_may_ask_for_pieces_and_nothing_else(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            asked = hood.members["fra1"]
            async with AgentClient("fra1", asked.address, hood.credentials("fra2")) as peer:
                assert (await peer.have(HaveQuery((), ()))).holdings == {}
                for question in (peer.host, peer.processes, peer.peers):
                    with pytest.raises(CallRefused) as caught:
                        await question()
                    assert caught.value.refusal.reason is Reason.FORBIDDEN

    run(tmp_path, work)


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode(PiecesQuery((), ())), b"\x90" * 1000])
def test_a_bad_question_is_refused(tmp_path: Path, body: bytes) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            asked = hood.members["fra1"]
            async with AgentClient("fra1", asked.address, hood.credentials("fra2")) as peer:
                for path in (Routes.PEER_PIECES, Routes.PEER_HAVE):
                    with pytest.raises(CallRefused) as caught:
                        await peer._agent.ask("POST", path, bytes, body=body)
                    assert caught.value.refusal.reason is Reason.BAD_REQUEST

    run(tmp_path, work)


def test_a_host_without_room_takes_nothing_and_says_so(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            blob = hood.source.put(noise(2 * MiB)).digest
            listed = hood.listed([blob])
            await hood.give("fra1", [blob])
            member = hood.members["fra2"]
            member.agent._peering._spool._free = lambda _: MiB
            done = await hood.fetch("fra2", [blob], listed=listed, wait_s=30.0)
            assert (done.missing, done.under_way, done.region_bytes) == ((blob,), False, 0)
            assert "no room" in done.trouble
            assert not list((member.state_dir / "arriving").iterdir())
            member.agent._peering._spool._free = lambda _: 1 << 40
            assert (await hood.fetch("fra2", [blob], listed=listed, wait_s=30.0)).missing == ()

    run(tmp_path, work)
