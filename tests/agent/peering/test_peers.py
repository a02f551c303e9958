"""Hosts take blobs from each other: over TLS with their own certificates, checked piece by piece."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.agent.peering.neighbourhood import FETCH_S, neighbourhood, noise, run
from tests.agent.service.support import until

MiB = 1 << 20


def test_a_host_gets_what_another_of_its_region_has(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            large = hood.source.put(noise(3 * MiB)).digest
            small = [hood.source.put(noise(5000, seed)).digest for seed in range(2, 40)]
            text = hood.source.put(b"much the same, again and again. " * 60_000).digest
            blobs = [large, text, *small]
            listed = hood.listed(blobs)
            await hood.give("fra1", blobs)
            done = await hood.fetch("fra2", blobs, listed=listed, wait_s=FETCH_S)
            assert (done.missing, done.under_way, done.trouble, done.wrong) == ((), False, "", ())
            assert hood.members["fra2"].has(blobs)
            assert done.blobs == len(blobs) and done.border_bytes == 0
            assert 3 * MiB < done.region_bytes < 3 * MiB + 38 * 5000 + 50_000
            (row,) = [row for row in (await hood.members["fra2"].client.peers()).peers if row.host == "fra1"]
            assert (
                done.region_bytes <= row.received_bytes < done.region_bytes * 1.1
                and row.rate_bytes_s > 0
                and not row.failures
            )
            (row,) = [row for row in (await hood.members["fra1"].client.peers()).peers if row.host == "fra2"]
            assert row.sent_bytes >= done.region_bytes

    run(tmp_path, work)


def test_the_next_version_travels_as_its_delta(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            before = noise(2 * MiB)
            old = hood.source.put(before, name="x").digest
            new = hood.source.put(before[:MiB] + b"new" + before[MiB:], name="x").digest
            await hood.give("fra1", [old])
            await hood.give("fra2", [old])
            await hood.give("fra1", [new])
            done = await hood.fetch("fra2", [new], listed=hood.listed([new]), wait_s=FETCH_S)
            assert done.missing == () and done.region_bytes < 5000

    run(tmp_path, work)


def test_pieces_are_handed_on_while_the_blob_arrives_and_cross_the_border_once(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2", "fra3", "ams1") as hood:
            blob = hood.source.put(noise(6 * MiB)).digest
            listed = hood.listed([blob])
            await hood.give("ams1", [blob])
            answers = await asyncio.gather(
                *(hood.fetch(name, [blob], listed=listed, wait_s=FETCH_S) for name in ("fra1", "fra2", "fra3"))
            )
            assert all(done.missing == () for done in answers)
            assert sum(done.border_bytes for done in answers) <= 6 * MiB * 1.1
            assert sum(done.region_bytes for done in answers) >= 6 * MiB * 1.9

    run(tmp_path, work)


def test_a_wish_outlives_its_caller_and_the_agent(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            blob = hood.source.put(noise(MiB)).digest
            listed = hood.listed([blob])
            async with hood.member("fra2"):
                await hood.meet()
                first = await hood.fetch("fra2", [blob], listed=listed)
                assert first.missing == (blob,)
            await hood.give("fra1", [blob])
            async with hood.member("fra2"):
                await until(lambda: hood.members["fra2"].has([blob]))

    run(tmp_path, work)


def test_what_the_deployer_sends_meanwhile_is_not_fetched(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            blob = hood.source.put(noise(MiB)).digest
            listed = hood.listed([blob])
            assert (await hood.fetch("fra2", [blob], listed=listed)).under_way
            await hood.give("fra2", [blob])
            done = await hood.fetch("fra2", [blob], listed=listed, wait_s=FETCH_S)
            assert (done.missing, done.under_way, done.region_bytes) == ((), False, 0)

    run(tmp_path, work)
