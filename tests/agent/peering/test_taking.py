"""Large blobs that an operator brings piece by piece: handed on before the last piece is there, and never unchecked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.answers import Reason
from agent.api.blobs import BlobReceipt
from agent.api.fetching import MAX_BEFORE_BYTES, FormAsked, HaveQuery, PartAsked, PiecesOffer, PiecesQuery
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.errors import CallRefused, HostUnreachable
from cas import inventory
from cas.digest import Digest, digest_of
from cas.exchange import frames
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.messages import pack_pieces, unpack_pieces
from tests.agent.peering.neighbourhood import FETCH_S, Neighbourhood, neighbourhood, noise, run
from tests.agent.service.support import OPERATOR, authority, until

MiB = 1 << 20


def pieces_of(data: bytes) -> list[bytes]:
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


def body(offer: PiecesOffer, *pieces: bytes) -> list[bytes]:
    head = msgspec.msgpack.encode(offer)
    return [len(head).to_bytes(4, "little") + head, *pieces]


async def give(client: AgentClient, chunks: AsyncIterator[bytes] | Iterable[bytes]) -> None:
    stream = chunks if isinstance(chunks, AsyncIterator) else _one_by_one(chunks)
    await client._agent.ask("POST", Routes.PIECES, BlobReceipt, stream=stream, timeout_s=None)


async def _one_by_one(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def listed(hood: Neighbourhood, name: str, blobs: list[Digest]) -> Digest:
    """A host is given the inventory of these."""
    made = hood.listed(blobs)
    await hood.give(name, [made, *inventory.decode(hood.source.read(made)).manifests()])
    return made


async def held(client: AgentClient, data: bytes, pieces: int) -> bool:
    """Has the host exactly these pieces of this blob?"""
    name, count = digest_of(data), pieces_in(len(data))
    asked = FormAsked(name, name, len(data))
    answer = await client.have(HaveQuery((asked,), (pack_pieces(0, count),)))
    return pieces == (unpack_pieces(answer.holdings[0], count) if answer.holdings else 0)


def test_the_first_piece_is_with_a_neighbour_before_the_last_one_is_sent(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            data = noise(2 * MiB)
            blob = hood.source.put(data).digest
            inventory_ = await listed(hood, "fra1", [blob])
            fetching = asyncio.create_task(hood.fetch("fra2", [blob], listed=inventory_, wait_s=FETCH_S))
            second = hood.members["fra2"].client
            offer = PiecesOffer(inventory_, (blob,), (PartAsked(0, 0, 8),))

            async def halting() -> AsyncIterator[bytes]:
                for number, chunk in enumerate(body(offer, *pieces_of(data))):
                    if number == 8:  # the last piece
                        await until(lambda: held(second, data, 0x7F))
                    yield chunk

            await give(hood.members["fra1"].client, halting())
            assert hood.members["fra1"].store.read(blob) == data
            done = await fetching
            assert (done.missing, done.region_bytes, done.border_bytes) == ((), len(data), 0)
            assert hood.members["fra2"].store.read(blob) == data

    run(tmp_path, work)


def test_what_came_before_a_stream_was_cut_off_is_kept_and_a_patch_follows_its_base(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            old = noise(MiB)
            new = old[: MiB // 2] + noise(MiB, seed=2) + old[MiB // 2 :]
            base = hood.source.put(old, name="x").digest
            blob = hood.source.put(new, name="x").digest
            inventory_ = await listed(hood, "fra1", [base, blob])
            items = inventory.decode(hood.source.read(inventory_)).by_blob()
            (patch,) = items[blob].others
            found = hood.source.patch(blob, [base])
            assert found is not None and patch.size == len(found[1]) > 2 * PIECE_BYTES
            client = hood.members["fra1"].client
            forms = (base, patch.digest)
            last = pieces_in(patch.size)

            async def broken() -> AsyncIterator[bytes]:
                for chunk in body(PiecesOffer(inventory_, forms, (PartAsked(0, 0, 4),)), *pieces_of(old)[:2]):
                    yield chunk
                await until(lambda: held(client, old, 0b11))
                raise ConnectionResetError

            with pytest.raises((HostUnreachable, ConnectionResetError)):
                await give(client, broken())
            early = PiecesOffer(inventory_, forms[1:], (PartAsked(0, 0, last),))
            with pytest.raises(CallRefused) as caught:  # it is all there now, and its base is not
                await client.give_pieces(early, pieces_of(found[1]))
            assert caught.value.refusal.missing == (base,)
            offer = PiecesOffer(inventory_, forms, (PartAsked(0, 2, 2),))
            receipt = await client.give_pieces(offer, pieces_of(old)[2:])
            assert (receipt.blobs, receipt.wire_bytes) == (2, MiB // 2)
            assert hood.members["fra1"].store.read(blob) == new
            assert not list((hood.members["fra1"].state_dir / "arriving").iterdir())
            again = await client.give_pieces(PiecesOffer(inventory_, forms, ()), ())
            assert (again.blobs, again.wire_bytes) == (2, 0)

    run(tmp_path, work)


def test_pieces_that_are_not_what_the_inventory_says_are_refused_and_nothing_wrong_is_kept(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            data = noise(MiB)
            member = hood.members["fra1"]
            blob = hood.source.put(data).digest
            offer = PiecesOffer(await listed(hood, "fra1", [blob]), (blob,), (PartAsked(0, 0, 4),))
            pieces = pieces_of(data)

            def other(**fields: Any) -> list[bytes]:
                return body(msgspec.structs.replace(offer, **fields), *pieces)

            for chunks, reason in (
                (body(offer, pieces[0], pieces[2], pieces[1], pieces[3]), Reason.BAD_BLOB),
                (body(offer, *pieces[:3]), Reason.BAD_REQUEST),
                ([b"\xff\xff\xff\xff", *pieces], Reason.TOO_LARGE),
                ([b"\x05\x00\x00\x00what?"], Reason.BAD_REQUEST),
                ([b"\x05\x00"], Reason.BAD_REQUEST),
                (other(parts=(PartAsked(0, 3, 2),)), Reason.BAD_REQUEST),
                (other(parts=(PartAsked(0, 0, 1 << 32),)), Reason.BAD_REQUEST),
                (other(parts=(PartAsked(0, 0, 2), PartAsked(0, 1, 2))), Reason.BAD_REQUEST),
                (other(parts=(PartAsked(7, 0, 1),)), Reason.BAD_REQUEST),
                (other(forms=(digest_of(b"x"),)), Reason.BAD_REQUEST),
                (other(inventory=digest_of(b"x")), Reason.MISSING_BLOBS),
                (body(offer, *pieces, b"and more"), Reason.BAD_REQUEST),
            ):
                with pytest.raises(CallRefused) as caught:
                    await give(member.client, chunks)
                assert caught.value.refusal.reason is reason, chunks[0][:200]
                assert not member.has([blob]) or chunks[-1] == b"and more"
            assert (await member.client.give_pieces(offer, pieces)).blobs == 1
            assert member.store.read(blob) == data

    run(tmp_path, work)


def test_what_it_takes_to_check_pieces_may_come_before_them_in_the_same_body(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            data, member = noise(MiB), hood.members["fra1"]
            blob = hood.source.put(data).digest
            made = hood.listed([blob])
            first = b"".join(frames(hood.source, [made, *inventory.decode(hood.source.read(made)).manifests()]))
            offer = PiecesOffer(made, (blob,), (PartAsked(0, 0, 4),))

            def with_before(count: int, before: bytes) -> list[bytes]:
                return body(msgspec.structs.replace(offer, before_bytes=count), before, data)

            for chunks, reason in (
                (body(offer, data), Reason.MISSING_BLOBS),
                (with_before(len(first), bytes(len(first))), Reason.BAD_BLOB),
                (with_before(len(first) - 1, first), Reason.BAD_BLOB),
                (with_before(3 * MiB, first), Reason.BAD_REQUEST),
                (with_before(MAX_BEFORE_BYTES + 1, first), Reason.BAD_REQUEST),
            ):
                with pytest.raises(CallRefused) as caught:
                    await give(member.client, chunks)
                assert caught.value.refusal.reason is reason
                assert not member.has([blob])
            whole = b"".join(with_before(len(first), first))
            await give(member.client, [whole[at : at + 10_007] for at in range(0, len(whole), 10_007)])
            assert member.store.read(blob) == data

    run(tmp_path, work)


def test_only_operators_bring_pieces(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            offer = PiecesOffer(digest_of(b""), (), ())
            reader = authority().issue(tmp / "reader", OPERATOR.replace("operator", "reader"))
            for credentials in (hood.credentials("fra2"), reader):
                async with AgentClient("fra1", hood.addresses["fra1"], credentials) as stranger:
                    with pytest.raises(CallRefused) as caught:
                        await stranger.give_pieces(offer, ())
                    assert caught.value.refusal.reason is Reason.FORBIDDEN

    run(tmp_path, work)


def test_what_came_from_a_neighbour_meanwhile_is_no_error(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            data = noise(MiB)
            blob = hood.source.put(data).digest
            member = hood.members["fra1"]
            offer = PiecesOffer(await listed(hood, "fra1", [blob]), (blob,), (PartAsked(0, 0, 4),))

            async def slowly() -> AsyncIterator[bytes]:
                for number, chunk in enumerate(body(offer, *pieces_of(data))):
                    if number == 2:
                        await until(lambda: member.agent._peering._spool.held(blob) == 1)
                        member.store.put(data)
                        member.agent._peering._spool.drop(blob)
                    yield chunk

            await give(member.client, slowly())
            assert member.store.read(blob) == data
            query = PiecesQuery((FormAsked(blob, blob, MiB),), (PartAsked(0, 0, 4),))
            assert b"".join([part async for part in member.client.pieces(query)]) == data

    run(tmp_path, work)
