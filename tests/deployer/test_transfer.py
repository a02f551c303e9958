"""Blobs on their way to real hosts: only what is missing, on from where it stopped, and never without saying so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from agent.api.blobs import BlobAnswer, BlobBegun, BlobQuery, BlobReceipt
from agent.client.client import AgentClient
from agent.client.errors import HostUnreachable
from cas.digest import digest_of
from cas.exchange import frames
from deployer.applying.fleet import Fleet
from deployer.applying.site import Site
from deployer.applying.transfer import estimate, transfer
from deployer.errors import HostsUnreachable, TransferFailed
from tests.deployer.ground import Ground
from tests.deployer.test_apply import Watching

MiB = 1 << 20


def test_a_host_is_sent_only_what_it_lacks(ground: Ground) -> None:
    first = [ground.blob(os.urandom(1000)) for _ in range(5)]
    more = [*first, ground.blob(os.urandom(1000))]

    async def both(site: Site) -> tuple[int, int, int, dict[str, int]]:
        one = (await transfer(site, {"h1": first}))["h1"]
        expected = await estimate(site, {"h1": more, "h2": more})
        two = (await transfer(site, {"h1": more}))["h1"]
        none = (await transfer(site, {"h1": more}))["h1"]
        return one.blobs, two.blobs, none.wire_bytes, expected

    sent_first, sent_then, sent_last, expected = asyncio.run(ground.on_site(both))
    assert (sent_first, sent_then, sent_last) == (5, 1, 0)
    assert expected["h2"] > 6000 > 1500 > expected["h1"] > 1000


def test_the_estimate_is_what_is_sent_and_progress_ends_at_it(ground: Ground) -> None:
    blobs = [ground.blob(os.urandom(3 * MiB)), ground.blob(b"text " * 10_000)]
    watching = Watching()

    async def act(site: Site) -> tuple[int, int]:
        expected = await estimate(site, {"h1": blobs})
        return expected["h1"], (await transfer(site, {"h1": blobs}))["h1"].wire_bytes

    expected, sent = asyncio.run(ground.on_site(act, watching))
    assert expected == sent
    assert watching.sent["h1"] == (sent, sent)


def test_a_blob_that_is_nowhere_is_named_and_other_hosts_are_served(ground: Ground) -> None:
    here, nowhere = ground.blob(os.urandom(1000)), digest_of(os.urandom(8))

    async def act(site: Site) -> None:
        await transfer(site, {"h1": [nowhere], "h2": [here]})

    with pytest.raises(TransferFailed) as caught:
        asyncio.run(ground.on_site(act))
    assert nowhere in caught.value.reasons["h1"]
    assert set(caught.value.reasons) == {"h1"}

    async def again(site: Site) -> int:
        return (await transfer(site, {"h2": [here]}))["h2"].blobs

    assert asyncio.run(ground.on_site(again)) == 0


def text(version: int) -> bytes:
    """A file of 1.2 MB that does not compress well; versions differ in a few lines."""
    chance = random.Random(3)
    rows = [f"{number} {chance.randbytes(24).hex()}" for number in range(20_000)]
    rows[version * 7] = f"version {version}"
    return "\n".join(rows).encode()


def test_a_host_that_has_only_a_blob_that_no_stored_delta_leads_from_is_sent_a_fresh_delta(ground: Ground) -> None:
    """What the deployer's store has of the new file is whole, and the host has an older one that came later here."""
    newer = ground.blob(text(2))
    older = ground.blob(text(1))
    assert ground.store.stat(newer).base is None

    async def act(site: Site) -> list[int]:
        await transfer(site, {"h1": [older], "h2": [older]})
        return [(await transfer(site, {host: [newer]}))[host].wire_bytes for host in ("h1", "h2")]

    sent = asyncio.run(ground.on_site(act))
    assert max(sent) < 10_000 < len(text(2)) / 10
    assert [kept.base for kept in ground.store.stat(newer).patches] == [older]


class CuttingProxy:
    """Passes connections on to a host, and cuts the first few off after so many bytes towards it, or from it."""

    def __init__(self, target: tuple[str, int], *, cut_after: int, cuts: int, towards: bool = True) -> None:
        self._target = target
        self._cut_after = cut_after
        self._cuts_left = cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.accepted = 0
        threading.Thread(target=self._accept, args=(towards,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def cuts_left(self) -> int:
        return self._cuts_left

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # who waits in `accept` might go on with the next proxy's
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self, towards: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                server = socket.create_connection(self._target)
                self._open += [client, server]
                threading.Thread(target=self._pass_both_ways, args=(client, server, towards), daemon=True).start()

    def _pass_both_ways(self, client: socket.socket, server: socket.socket, towards: bool) -> None:
        back = threading.Thread(target=self._pass_on, args=(server, client, not towards), daemon=True)
        back.start()
        self._pass_on(client, server, towards)
        back.join()
        for end in (client, server):
            end.close()  # what is still sent here is refused, instead of filling a buffer that nobody reads

    def _pass_on(self, source: socket.socket, to: socket.socket, counted: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if counted and self._cuts_left and passed > self._cut_after:
                    self._cuts_left -= 1
                    break
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cut(ground: Ground) -> Iterator[CuttingProxy]:
    address, _, port = ground.agents["h1"].listen.rpartition(":")
    proxy = CuttingProxy((address, int(port)), cut_after=2 * MiB, cuts=2)
    yield proxy
    proxy.close()


def test_a_transfer_that_is_cut_off_goes_on_where_it_was(ground: Ground, cut: CuttingProxy) -> None:
    blobs = [ground.blob(os.urandom(MiB)) for _ in range(5)]

    async def act() -> BlobReceipt:
        async with Fleet({"h1": cut.address}, ground.cloud.credentials) as fleet:
            site = Site(ground.store, ground.ref, fleet, ground.by)
            return (await transfer(site, {"h1": blobs}))["h1"]

    receipt = asyncio.run(act())
    assert cut.cuts_left == 0
    assert 0 < receipt.blobs < len(blobs)
    assert receipt.wire_bytes > receipt.raw_bytes + 2 * MiB


def test_of_a_blob_that_was_cut_off_in_the_middle_only_the_rest_is_sent(ground: Ground) -> None:
    address, _, port = ground.agents["h1"].listen.rpartition(":")
    cut = CuttingProxy((address, int(port)), cut_after=6 * MiB, cuts=1)
    data = os.urandom(12 * MiB)
    blob = ground.blob(data)

    async def act() -> tuple[int, int]:
        async with Fleet({"h1": cut.address}, ground.cloud.credentials) as fleet:
            client = await fleet.client("h1")
            with pytest.raises(HostUnreachable):
                await client.send_blobs(frames(ground.store, [blob]))
            async with asyncio.timeout(60):
                while not (begun := await client.begun([blob])):
                    pass
            site = Site(ground.store, ground.ref, fleet, ground.by)
            return begun[0].bytes, (await transfer(site, {"h1": [blob]}))["h1"].wire_bytes

    had_bytes, sent_bytes = asyncio.run(act())
    cut.close()
    assert had_bytes > 5 * MiB
    assert len(data) - had_bytes < sent_bytes < len(data) - had_bytes + 200


def test_a_blob_whose_begun_part_is_gone_when_the_rest_comes_is_sent_whole(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = ground.blob(os.urandom(MiB))

    async def told_wrongly(self: AgentClient, blobs: Sequence[str]) -> tuple[BlobBegun, ...]:  # noqa: ARG001
        return tuple(BlobBegun(digest, "plain", MiB // 2) for digest in blobs)

    async def act(site: Site) -> BlobReceipt:
        return (await transfer(site, {"h1": [blob]}))["h1"]

    monkeypatch.setattr(AgentClient, "begun", told_wrongly)
    assert asyncio.run(ground.on_site(act)).raw_bytes == MiB


class Greedy(AgentClient):
    """Its agent says that it lacks what it was not asked about."""

    async def query(self, query: BlobQuery) -> BlobAnswer:
        answer = await super().query(query)
        return msgspec.structs.replace(answer, missing=(*answer.missing, SECRET), bases=(*answer.bases, SECRET))


SECRET = digest_of(b"for somebody else")


def test_a_host_is_sent_nothing_that_it_was_not_asked_about(ground: Ground) -> None:
    assert ground.blob(b"for somebody else") == SECRET
    wanted = ground.blob(random.randbytes(10_000))
    credentials = ground.cloud.credentials

    async def act() -> tuple[BlobReceipt, tuple[str, ...]]:
        addresses = {"h1": ground.agents["h1"].listen}
        async with Fleet(addresses, credentials, connect=lambda host, at: Greedy(host, at, credentials)) as fleet:
            receipts = await transfer(Site(ground.store, ground.ref, fleet, ground.by), {"h1": (wanted,)})
            told = await AgentClient.query(await fleet.client("h1"), BlobQuery((wanted, SECRET)))
            return receipts["h1"], told.missing

    receipt, missing = asyncio.run(act())
    assert (receipt.blobs, missing) == (1, (SECRET,))


def test_hosts_that_cannot_be_asked_are_named_by_an_estimate(ground: Ground) -> None:
    async def act() -> None:
        async with Fleet({"h1": "127.0.0.1:1"}, ground.cloud.credentials) as fleet:
            await estimate(Site(ground.store, ground.ref, fleet, ground.by), {"h1": [digest_of(b"x")]})

    with pytest.raises(HostsUnreachable, match="h1"):
        asyncio.run(act())
