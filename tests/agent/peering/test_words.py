"""Word of a release: a host that was away hears of it from its neighbours, and believes an operator's word alone."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from agent import tls
from agent.api.answers import Reason
from agent.api.blobs import BlobQuery
from agent.api.fetching import Party
from agent.api.neighbours import Acquaint, Meet, Neighbour, Neighbours
from agent.api.records import encode_record
from agent.api.routes import Routes
from agent.api.words import WORD_CONTEXT, SignedWord, Wishes, Word, WordsAnswer, WordsQuery
from agent.client.client import AgentClient
from agent.client.errors import CallRefused
from agent.daemon.peering import heeding
from agent.daemon.peering.heeding import Pace
from agent.daemon.peering.service import NEIGHBOURS_NAME
from agent.daemon.peering.words import Words
from agent.daemon.refusal import Refused
from cas import inventory, signed
from cas.digest import Digest, digest_of
from tests.agent.peering.neighbourhood import REGIONS, Neighbourhood, neighbourhood, noise, run
from tests.agent.service.certificates import Authority
from tests.agent.service.support import OPERATOR, authority, until

MiB = 1 << 20
QUICK = Pace(first_s=0.05, every_s=0.2, alone_s=0.1, rest_s=0.1, longest_rest_s=0.5)
NOW_NS = time.time_ns()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heeding, "Pace", lambda: QUICK)


def vouch(word: Word | bytes, credentials: Path) -> SignedWord:
    data = word if isinstance(word, bytes) else encode_record(word)
    key, certificate = ((credentials / name).read_bytes() for name in ("key.pem", "cert.pem"))
    return SignedWord(data, signed.sign(data, WORD_CONTEXT, key_pem=key, certificate_pem=certificate))


class Release:
    """What a deployer makes of some blobs, in its store."""

    def __init__(
        self, hood: Neighbourhood, blobs: Iterable[Digest], *, behind: Iterable[str], at_unix_ns: int = NOW_NS
    ):
        blobs = sorted(blobs)
        self.hood = hood
        self.operator = authority().issue(hood.tmp / "operator", OPERATOR)
        everybody = tuple(sorted(hood.addresses))
        neighbours = Neighbours(tuple(Neighbour(name, REGIONS[name], hood.addresses[name]) for name in everybody))
        wishes = Wishes((Party((), tuple(blobs)),), (), tuple(behind))
        names = (
            hood.listed(blobs),
            *(hood.source.put(encode_record(record)).digest for record in (wishes, neighbours)),
        )
        sizes = [hood.source.stat(name).size for name in names]
        self.word = Word(
            "prod",
            digest_of(str(at_unix_ns).encode()),
            at_unix_ns,
            names[0],
            sizes[0],
            names[1],
            sizes[1],
            names[2],
            sizes[2],
        )
        manifests = inventory.decode(hood.source.read(self.word.inventory)).manifests()
        self.listing = [self.word.inventory, self.word.wishes, self.word.neighbours, *manifests]

    async def leave(self, name: str) -> bool:
        """With a host, as a deployer does."""
        await self.hood.give(name, self.listing)
        return await self.hood.members[name].client.leave_word(vouch(self.word, self.operator))


def heard(hood: Neighbourhood, name: str) -> Digest | None:
    found = hood.members[name].agent._peering.heeding._words.newest.get("prod")
    return found.word.release if found else None


def test_a_host_that_was_away_gets_what_it_missed_and_says_that_it_waits(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "ams1") as hood:
            async with hood.member("fra2"):
                await hood.meet()
            blobs = [hood.source.put(noise(2 * MiB)).digest, hood.source.put(b"small").digest]
            await hood.give("fra1", blobs)
            release = Release(hood, blobs, behind=["fra2"])
            assert await release.leave("fra1")
            assert not await release.leave("fra1")
            await until(lambda: heard(hood, "ams1") == release.word.release)
            await until(lambda: hood.members["ams1"].has(release.listing))
            async with hood.member("fra2") as back:
                await until(lambda: back.has(blobs))
                assert heard(hood, "fra2") == release.word.release
                facts = await back.client.host()
                assert isinstance(facts.waiting, tuple)
                ((waiting),) = facts.waiting
                assert (waiting.release, waiting.by, waiting.blobs, waiting.missing) == (
                    release.word.release,
                    OPERATOR,
                    2,
                    0,
                )
                again = Release(hood, blobs, behind=[], at_unix_ns=NOW_NS + 1)
                await again.leave("ams1")
                await until(lambda: heard(hood, "fra2") == again.word.release)
                await until(lambda: back.has(again.listing))
                assert (await back.client.host()).waiting is msgspec.UNSET
            assert (await hood.members["fra1"].client.host()).waiting is msgspec.UNSET

    run(tmp_path, work)


def test_who_hears_a_word_tells_its_region_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heeding, "Pace", lambda: Pace(first_s=1000))

    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2", "fra3", "ams1") as hood:
            release = Release(hood, [hood.source.put(b"x").digest], behind=[])
            await release.leave("fra1")
            for name in ("fra2", "fra3"):
                await until(lambda name=name: hood.members[name].has(release.listing))  # type: ignore[misc] # of now
                assert heard(hood, name) == release.word.release
            assert heard(hood, "ams1") is None

    run(tmp_path, work)


class Gossip:
    """A neighbour with a real certificate that answers with anything."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked = 0

    @asynccontextmanager
    async def listening(self, credentials: Path) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post(Routes.PEER_WORDS, self._words)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server_context(credentials)).start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _words(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=self.body)


def answers(*words: SignedWord) -> bytes:
    return msgspec.msgpack.encode(WordsAnswer(words))


def test_a_lying_neighbour_is_not_believed_and_the_others_are_heard(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        liar = Gossip(b"")
        async with (
            neighbourhood(tmp, "fra1", "fra2") as hood,
            liar.listening(hood.credentials("fra3")) as address,
        ):
            hood.addresses["fra3"] = address
            await hood.meet()
            blob = hood.source.put(noise(MiB)).digest
            await hood.give("fra1", [blob])
            true = Release(hood, [blob], behind=["fra2"])
            later = msgspec.structs.replace(true.word, at_unix_ns=NOW_NS + 1000, release=digest_of(b"forged"))
            changed = msgspec.structs.replace(vouch(true.word, true.operator), word=encode_record(later))
            strangers = Authority().issue(tmp / "strange", OPERATOR)
            reader = authority().issue(tmp / "reader", "reader:eve")
            far = msgspec.structs.replace(later, at_unix_ns=NOW_NS + 10**9 * 86400)

            def failures() -> int:
                return hood.members["fra2"].agent._peering._links.of("fra3").failures

            for body in (
                b"nonsense",
                b"\0" * (2 << 20),
                answers(changed),
                answers(vouch(later, strangers)),
                answers(vouch(later, reader)),
                answers(vouch(later, hood.credentials("fra3"))),
                answers(vouch(far, true.operator)),
                answers(vouch(b"lowcloud word 2\n", true.operator)),
                msgspec.msgpack.encode({"words": [msgspec.to_builtins(vouch(later, reader))] * 17}),
            ):
                liar.body, liar.asked = body, 0
                before = failures()
                await until(lambda before=before: liar.asked > 1 and failures() > before + 1)  # type: ignore[misc] # of now
                assert heard(hood, "fra1") is heard(hood, "fra2") is None
            liar.body = answers(vouch(msgspec.structs.replace(true.word, at_unix_ns=5), true.operator))
            await until(lambda: heard(hood, "fra2") is not None)
            await true.leave("fra1")  # newer than what the liar repeats
            await until(lambda: hood.members["fra2"].has([blob]))
            assert heard(hood, "fra2") == true.word.release
            liar.asked = 0
            await until(lambda: liar.asked > 2)
            assert hood.members["fra2"].agent._peering.heeding._words.newest["prod"].word == true.word

    run(tmp_path, work)


def test_only_an_operator_leaves_a_word_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            release = Release(hood, [hood.source.put(b"x").digest], behind=[])
            member = hood.members["fra1"]
            word = vouch(release.word, release.operator)
            async with AgentClient("fra1", member.address, hood.credentials("fra2")) as peer:
                with pytest.raises(CallRefused) as caught:
                    await peer.leave_word(word)
                assert caught.value.refusal.reason is Reason.FORBIDDEN
                assert (await peer.words(WordsQuery())).words == ()
                await member.client.leave_word(word)
                assert (await peer.words(WordsQuery())).words == (word,)
                assert (await peer.words(WordsQuery({"prod": NOW_NS - 1, "other": 1}))).words == (word,)
                assert (await peer.words(WordsQuery({"prod": NOW_NS}))).words == ()
                for body in (b"", b"\xc1", b"\x81" * 1000, b"\0" * (65 << 10)):
                    with pytest.raises(CallRefused):
                        await peer._agent.ask("POST", Routes.PEER_WORDS, bytes, body=body)
                forged = msgspec.structs.replace(word, signature=vouch(b"another", release.operator).signature)
                with pytest.raises(CallRefused) as caught:
                    await peer.words(WordsQuery(words=(forged,)))
                assert caught.value.refusal.reason is Reason.FORBIDDEN
            for bad, reason in (
                (forged, Reason.FORBIDDEN),
                (vouch(b"lowcloud word 1\n\xc1", release.operator), Reason.BAD_REQUEST),
                (SignedWord(bytes(3000), word.signature), Reason.BAD_REQUEST),
            ):
                with pytest.raises(CallRefused) as caught:
                    await member.client.leave_word(bad)
                assert caught.value.refusal.reason is reason

    run(tmp_path, work)


def test_a_word_that_names_nonsense_is_given_up_when_a_newer_one_comes(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            release = Release(hood, [hood.source.put(noise(MiB)).digest], behind=[])
            wrong = hood.source.put(b"no inventory at all").digest
            release.word = msgspec.structs.replace(release.word, inventory=wrong, wishes=wrong)
            release.listing = [wrong, release.word.neighbours]
            await release.leave("fra1")
            await until(lambda: heard(hood, "fra2") == release.word.release)
            await until(lambda: hood.members["fra2"].has([wrong]))
            assert (await hood.members["fra2"].client.host()).waiting is msgspec.UNSET
            right = Release(hood, [hood.source.put(noise(MiB)).digest], behind=[], at_unix_ns=NOW_NS + 1)
            await right.leave("fra1")
            await until(lambda: hood.members["fra2"].has(right.listing))

    run(tmp_path, work)


# --- without a network ------------------------------------------------------------------------------------------------


def kept(tmp: Path, **fields: Any) -> tuple[Words, SignedWord]:
    operator = authority().issue(tmp / "operator", OPERATOR)
    word = Word(
        **{
            "ref": "prod",
            "release": digest_of(b"r"),
            "at_unix_ns": NOW_NS,
            "inventory": digest_of(b"i"),
            "inventory_bytes": 1,
            "wishes": digest_of(b"w"),
            "wishes_bytes": 1,
            "neighbours": digest_of(b"n"),
            "neighbours_bytes": 1,
            **fields,
        }
    )
    return Words(tmp / "words", operator / tls.CA_FILE, time.time), vouch(word, operator)


def test_words_last_over_restarts_and_the_newest_of_few_refs_are_kept(tmp_path: Path) -> None:
    words, _ = kept(tmp_path)
    for number in range(20):
        _, word = kept(tmp_path, ref=f"r{number}", at_unix_ns=NOW_NS - 20 + number)
        assert words.take(word) is not None
    _, old = kept(tmp_path, ref="ancient", at_unix_ns=1)
    assert words.take(old) is None
    again, _ = kept(tmp_path)
    assert sorted(again.newest) == sorted(words.newest) == sorted(f"r{number}" for number in range(4, 20))


def test_a_word_of_an_operator_whose_certificate_has_expired_does_not_count_any_more(tmp_path: Path) -> None:
    words, word = kept(tmp_path)
    assert words.take(word) is not None
    later = datetime.datetime(2226, 1, 1, tzinfo=datetime.UTC).timestamp()
    expired = Words(tmp_path / "words", tmp_path / "operator" / tls.CA_FILE, lambda: later)
    assert expired.newest == {}
    with pytest.raises(Refused, match="not valid today"):
        expired.take(word)


def test_a_damaged_file_of_words_is_no_reason_not_to_start(tmp_path: Path) -> None:
    words, word = kept(tmp_path)
    words.take(word)
    (tmp_path / "words").write_bytes(b"damaged")
    again, _ = kept(tmp_path)
    assert again.newest == {}
    assert again.take(word) is not None


def test_a_list_of_neighbours_is_told_by_its_name_once_it_is_here(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            listed = Neighbours(tuple(Neighbour(name, "x", hood.addresses[name]) for name in ("fra1", "fra2")))
            name = hood.source.put(encode_record(listed)).digest
            one, two = (hood.members[name].client for name in ("fra1", "fra2"))
            acquaint = Acquaint(name, 100)
            assert not await one.acquaint(acquaint)
            await hood.give("fra1", [name])
            assert await one.acquaint(acquaint)
            assert (await one.peers()).region == "x"
            assert await two.acquaint(msgspec.structs.replace(acquaint, bring=True))
            assert (await two.peers()).region == "x"
            await two.meet(Meet(listed.neighbours, 99))
            assert not await two.acquaint(Acquaint(digest_of(b"nobody has it"), 101, bring=True))
            wrong = hood.source.put(b"no list").digest
            await hood.give("fra1", [wrong])
            with pytest.raises(CallRefused):
                await one.acquaint(Acquaint(wrong, 102))

    run(tmp_path, work)


def test_blobs_that_are_kept_are_acknowledged_though_the_list_among_them_cannot_be_used(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            member = hood.members["fra1"]
            listed = Neighbours((Neighbour("fra1", "x", member.address),))
            name = hood.source.put(encode_record(listed)).digest
            query = BlobQuery((name,), acquaint=Acquaint(name, 100))
            assert (await member.client.query(query)).missing == (name,)
            known = member.state_dir / NEIGHBOURS_NAME
            known.unlink()
            known.mkdir()
            await hood.give("fra1", [name])
            assert member.has([name])
            known.rmdir()
            await hood.give("fra1", [name])  # it is tried again each time that something comes
            assert (await member.client.peers()).region == "x"

    run(tmp_path, work)


def test_as_many_neighbours_are_asked_as_there_are_of_both_kinds(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            asking = hood.members["fra1"].agent._peering.heeding
            for regions, expected in (
                ({}, []),
                ({"a": "fra"}, ["fra"]),
                ({"a": "ams", "b": "ams", "c": "ams"}, ["ams"] * 3),
                ({"a": "fra", "b": "fra", "c": "fra"}, ["fra"] * 3),
                ({"a": "fra", "b": "fra", "c": "fra", "d": "ams", "e": "ams"}, ["ams", "fra", "fra"]),
                ({"a": "fra", "d": "ams", "e": "ams"}, ["ams", "ams", "fra"]),
            ):
                hood._version += 1
                others = tuple(Neighbour(name, region, "127.0.0.1:1") for name, region in regions.items())
                own = Neighbour("fra1", "fra", "127.0.0.1:1")
                await hood.members["fra1"].client.meet(Meet((own, *others), hood._version))
                assert sorted(asked.region for asked in asking._to_ask()) == expected

    run(tmp_path, work)
