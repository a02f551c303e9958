"""Blobs, output, journal and host facts, over a real connection."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent.api.answers import Reason
from agent.api.blobs import BlobQuery
from agent.api.calls import Collect, Replace, Start, Stop
from agent.api.journal import Event, JournalEntry
from agent.client.connections import DEFLATED_BYTES
from agent.client.errors import BadAnswer, CallRefused
from cas.digest import digest_of
from cas.exchange import frames
from cas.store import Store
from tests.agent.service.support import changed, host, put, run, spec_digest, until, wasm, web


def test_blobs_are_asked_for_sent_and_read_back() -> None:
    async def work(tmp: Path) -> None:
        blobs = [wasm(), b"config", bytes(range(256)) * 8192]
        wanted = put(tmp / "mine", *blobs)
        async with host(tmp / "state") as cloud:
            answer = await cloud.client.query(BlobQuery(want=tuple(wanted), bases=(digest_of(b"base"),)))
            assert set(answer.missing) == set(wanted)
            assert answer.bases == ()
            with Store.open(tmp / "mine" / "store") as store:
                receipt = await cloud.client.send_blobs(frames(store, wanted))
            assert receipt.blobs == 3
            assert receipt.raw_bytes == sum(map(len, blobs))
            assert (await cloud.client.query(BlobQuery(want=tuple(wanted)))).missing == ()
            assert [await cloud.client.blob(digest) for digest in wanted] == blobs
            with pytest.raises(BadAnswer):
                await cloud.client.blob(wanted[2], max_bytes=1000)

    run(work)


def test_what_a_host_is_and_runs_comes_in_one_answer_and_a_long_question_goes_deflated() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            report = await cloud.client.report()
            assert report.processes == await cloud.client.processes()
            assert report.host.host == (await cloud.client.host()).host
            many = tuple(digest_of(bytes([number])) for number in range(100))
            assert len(msgspec.msgpack.encode(BlobQuery(many))) > DEFLATED_BYTES
            assert (await cloud.client.query(BlobQuery(want=many))).missing == many

    run(work)


def test_a_stream_whose_bytes_are_not_what_their_name_says_is_refused() -> None:
    async def work(tmp: Path) -> None:
        wanted = put(tmp / "mine", b"true bytes" * 50)
        with Store.open(tmp / "mine" / "store") as store:
            sent = b"".join(frames(store, wanted))
        async with host(tmp / "state") as cloud:
            for place in range(0, len(sent), 7):
                lie = sent[:place] + bytes([sent[place] ^ 1]) + sent[place + 1 :]
                with pytest.raises(CallRefused) as caught:
                    await cloud.client.send_blobs([lie])
                assert caught.value.refusal.reason is Reason.BAD_BLOB
            with pytest.raises(CallRefused):
                await cloud.client.send_blobs([sent[:-1]])
            assert (await cloud.client.send_blobs([sent[i : i + 7] for i in range(0, len(sent), 7)])).blobs == 1

    run(work)


def test_collecting_keeps_what_runs_and_what_the_last_releases_ran() -> None:
    async def work(tmp: Path) -> None:
        one, two, three, stray, config = put(
            tmp / "state", wasm("one"), wasm("two"), wasm("three"), b"stray", b"the other's config"
        )
        releases = [digest_of(text) for text in (b"r1", b"r2", b"r3")]
        other = changed(web(one, port=9090), name="other", config={"/etc/x": config})
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)), release=releases[0])
            await cloud.ask(Start(other), release=releases[0])
            await cloud.ask(Stop("other", expect=spec_digest(other)), release=releases[1])
            await cloud.ask(Replace(web(two), expect=spec_digest(web(one))), release=releases[1])
            await cloud.ask(Replace(web(three), expect=spec_digest(web(two))), release=releases[2])
            store = cloud.agent._store
            store.release("stage")
            outcome = await cloud.ask(Collect(keep=1))
            assert outcome.changed
            assert set(store.missing([one, two, three, stray, config])) == {one, stray, config}
            await cloud.ask(Collect(keep=0))
            assert set(store.missing([two, three])) == {two}
            assert len(list((tmp / "state" / "code").glob("*.code"))) == 1
            assert len(await cloud.events(Event.COLLECTED)) == 2

    run(work)


def test_output_is_read_from_its_end_and_followed() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            (order,) = cloud.runtime.orders.values()
            path = Path(order.output_path)
            assert b"".join([p async for p in cloud.client.output("web")]) == b"web says hello\n"
            assert b"".join([p async for p in cloud.client.output("web", tail_bytes=4)]) == b"llo\n"
            seen: list[bytes] = []
            following = asyncio.create_task(gather_into(seen, cloud.client.output("web", follow=True, tail_bytes=6)))
            await until(lambda: b"".join(seen) == b"hello\n")
            append(path, b"more\n")
            await until(lambda: b"".join(seen) == b"hello\nmore\n")
            rotate(path, b"rotated\n")
            await until(lambda: b"".join(seen) == b"hello\nmore\nrotated\n")
            await cloud.ask(Replace(web(one, env={"ACT": "again"}), expect=spec_digest(web(one))))
            await until(lambda: b"".join(seen).endswith(b"web says again\n"))
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            with pytest.raises(CallRefused) as caught:
                async for _ in cloud.client.output("nobody"):
                    pass
            assert caught.value.refusal.reason is Reason.NOT_FOUND

    run(work)


async def gather_into(seen: list[bytes], pieces: AsyncIterator[bytes]) -> None:
    async for piece in pieces:
        seen += [piece]


def rotate(path: Path, data: bytes) -> None:
    path.rename(path.with_name(f"{path.name}.1"))
    append(path, data)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_the_journal_is_read_in_pages_and_its_chain_holds() -> None:
    async def work(tmp: Path) -> None:
        from agent.api.journal import entry_hash

        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            entries: list[JournalEntry] = []
            while page := await cloud.client.journal(entries[-1].seq if entries else -1, limit=2):
                assert len(page) <= 2
                entries += page
            assert [entry.seq for entry in entries] == list(range(len(entries)))
            for before, entry in itertools.pairwise(entries):
                assert entry.previous == before.hash == entry_hash(before)

    run(work)


def test_a_host_says_what_it_has() -> None:
    async def work(tmp: Path) -> None:
        async with host(tmp / "state") as cloud:
            facts = await cloud.client.host()
            assert (facts.host, facts.cores) == ("fra1", 8)
            assert facts.disk_free_bytes > 0
            assert facts.engine.startswith("wasmtime-")
            assert facts.kernel.startswith("Linux")
            assert "memory" in {row.name for row in facts.guarantees}

    run(work)


def test_a_sender_of_much_nonsense_learns_why_it_was_refused() -> None:
    async def work(tmp: Path) -> None:
        async with host(tmp / "state") as cloud:
            for _ in range(2):
                with pytest.raises(CallRefused) as caught:
                    await cloud.client.send_blobs(bytes(1 << 20) for _ in range(16))
                assert caught.value.refusal.reason is Reason.BAD_BLOB
            assert (await cloud.client.host()).store_blobs == 0

    run(work)
