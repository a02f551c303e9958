"""What a host has lost or finds damaged comes back from a neighbour; a liar is not believed there either."""

from __future__ import annotations

from pathlib import Path

from agent.api.calls import Check, Envelope, Stage
from tests.agent.peering import liars
from tests.agent.peering.liars import Liar
from tests.agent.peering.neighbourhood import Member, neighbourhood, noise, run
from tests.agent.service.support import until, wasm, web
from tests.cas import damage

MiB = 1 << 20


def spoil(member: Member) -> None:
    """Every record of a large blob, and every pack of small ones, has one bit that is another."""
    for database in ("records", "packs"):
        for key, value in damage.values(member.store, database):
            damage.overwrite(member.store, database, key, damage.flip(value, 8 * (len(value) // 2)))


def test_check_repairs_damaged_blobs_from_a_neighbour(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        data = noise(2 * MiB)
        liar = Liar(data, liars.flips)
        async with liar.among(tmp, "fra2", "fra3") as (hood, blob):
            for name in ("fra2", "fra3"):
                await hood.give(name, [blob])
            member = hood.members["fra2"]
            spoil(member)
            assert member.store.check().damaged
            outcome = await member.client.call(Envelope(Check()))
            assert outcome.damaged == () and "repaired" in outcome.detail and outcome.changed
            assert member.store.read(blob) == data
            assert (await member.client.call(Envelope(Check()))).detail == ""

    run(tmp_path, work)


def test_a_program_that_is_found_damaged_when_it_is_needed_is_repaired(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        program = wasm() + b"\0\x80\x80\x40\1x" + bytes(MiB - 2)
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            blob = hood.source.put(program).digest
            for name in ("fra1", "fra2"):
                await hood.give(name, [blob])
            member = hood.members["fra2"]
            spoil(member)
            assert member.store.check().damaged
            await member.client.call(Envelope(Stage((web(blob),))))
            assert member.store.read(blob) == program

    run(tmp_path, work)


def test_what_runs_and_is_gone_from_the_store_comes_back_by_itself(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            blob = hood.source.put(noise(1000)).digest
            await hood.give("fra1", [blob])
            async with hood.member("fra2") as member:
                await hood.meet()
                peering = member.agent._peering
                await peering.close()
                await peering.open(lambda: [blob])
                await until(lambda: member.has([blob]))

    run(tmp_path, work)
