"""Refs at a real etcd: what is reported is what has happened, whatever dies meanwhile."""

from __future__ import annotations

import datetime
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from cas.digest import Digest, digest_of
from cas.engines.address import Endpoint, EtcdAddress, parse_refs
from cas.engines.errors import EngineRefused, EngineUnreachable, HistoryMoved, RefUncertain
from cas.engines.etcd import EtcdClient, Unanswered
from cas.engines.etcd_refs import KEPT_MOVES, EtcdRefs
from cas.engines.last_seen import LastSeen, RememberedRefs
from cas.errors import RefMoved
from tests.engines.proxies import ADDRESS, Fate, Proxy, once
from tests.engines.servers import EtcdCluster, skip_without_etcd, wait_until
from tests.engines.support import PATIENCE_S, A, B, C, Told, refs_at
from tests.ports import free_port

ROUNDS = int(os.environ.get("LOWCLOUD_TEST_ROUNDS", "1"))
TXN = b"/v3/kv/txn"


def through(*ports: int, name: str, deadline_s: float = PATIENCE_S) -> EtcdRefs:
    """Refs behind these endpoints, the first of which is asked first."""
    address = EtcdAddress(tuple(Endpoint(ADDRESS, port) for port in ports), name, tls=False)
    client = EtcdClient(address, attempt_s=PATIENCE_S)  # what is lost here breaks the connection
    return EtcdRefs(client, name, move_deadline_s=deadline_s, read_deadline_s=deadline_s)


# --- lost answers ---------------------------------------------------------------------------------------------------


def version_of(etcd: EtcdCluster, name: str) -> int:
    """How often the ref's key was written."""
    address = parse_refs(etcd.address(name))
    assert address is not None
    [entry] = EtcdClient(address).range(f"/{name}/refs/prod".encode(), deadline_s=PATIENCE_S).found
    return entry.version


def test_a_move_whose_answer_was_lost_is_known_to_have_happened(etcd: EtcdCluster, engine_name: str) -> None:
    direct = refs_at(etcd, engine_name)
    direct.move_ref("prod", None, A)
    with Proxy(etcd.ports[0], decide=once("lose-answer", path=TXN)) as proxy:
        through(proxy.port, etcd.ports[1], name=engine_name).move_ref("prod", A, B)
    assert direct.read_ref("prod") == B
    assert version_of(etcd, engine_name) == 2


def test_a_move_whose_answer_was_lost_is_known_to_have_happened_when_others_have_moved_on(
    etcd: EtcdCluster, engine_name: str
) -> None:
    direct = refs_at(etcd, engine_name)
    direct.move_ref("prod", None, A)

    def others_move_on() -> None:
        direct.move_ref("prod", B, C)
        direct.move_ref("prod", C, A)

    with Proxy(etcd.ports[0], decide=once("lose-answer", path=TXN), before_answer=others_move_on) as proxy:
        through(proxy.port, etcd.ports[1], name=engine_name).move_ref("prod", A, B)
    assert direct.read_ref("prod") == A
    assert version_of(etcd, engine_name) == 4


def test_a_move_that_was_lost_on_its_way_is_made_once(etcd: EtcdCluster, engine_name: str) -> None:
    direct = refs_at(etcd, engine_name)
    direct.move_ref("prod", None, A)
    with Proxy(etcd.ports[0], decide=once("lose-request", path=TXN)) as proxy:
        through(proxy.port, etcd.ports[1], name=engine_name).move_ref("prod", A, B)
    assert direct.read_ref("prod") == B
    assert version_of(etcd, engine_name) == 2


def test_a_move_that_lost_its_answer_and_the_race_is_reported_as_moved(etcd: EtcdCluster, engine_name: str) -> None:
    direct = refs_at(etcd, engine_name)
    direct.move_ref("prod", None, A)
    first = once("lose-request", path=TXN)

    def decide(request: bytes):  # type: ignore[no-untyped-def]
        fate = first(request)
        if fate != "deliver":
            direct.move_ref("prod", A, C)
        return fate

    with (
        Proxy(etcd.ports[0], decide=decide) as proxy,
        pytest.raises(RefMoved) as caught,
    ):
        through(proxy.port, etcd.ports[1], name=engine_name).move_ref("prod", A, B)
    assert caught.value.actual == C
    assert direct.read_ref("prod") == C


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whatever_is_lost_on_the_way_everybody_knows_what_has_happened(
    etcd: EtcdCluster, engine_name: str, seed: int
) -> None:
    """Three operators move one ref over networks that lose requests and answers at random."""
    parents: dict[Digest, Digest | None] = {}
    won: list[Digest] = []

    def operator(number: int) -> None:
        fates = random.Random(seed * 10 + number)
        ways: list[Fate] = ["deliver", "deliver", "lose-request", "lose-answer"]
        with (
            Proxy(etcd.ports[0], decide=lambda _: fates.choice(ways)) as one,
            Proxy(etcd.ports[1], decide=lambda _: fates.choice(ways)) as other,
        ):
            refs = through(one.port, other.port, name=engine_name)
            for step in range(20):
                head = refs.read_ref("prod")
                mine = digest_of(f"{head} {number} {step}".encode())
                parents[mine] = head
                try:
                    refs.move_ref("prod", head, mine)
                except RefMoved:
                    continue
                won.append(mine)

    with ThreadPoolExecutor() as pool:
        list(pool.map(operator, range(3)))
    history = list(chain_of(parents, refs_at(etcd, engine_name).read_ref("prod")))
    assert sorted(history) == sorted(won)
    assert len(won) >= 20
    assert version_of(etcd, engine_name) == len(won)


def test_where_nobody_can_know_that_is_said(etcd: EtcdCluster, engine_name: str) -> None:
    direct = refs_at(etcd, engine_name)
    direct.move_ref("prod", None, A)
    with Proxy(etcd.ports[0], decide=lambda request: "lose-answer" if TXN in request else "deliver") as proxy:
        refs = through(proxy.port, name=engine_name, deadline_s=3.0)
        with pytest.raises(RefUncertain, match="not known"):
            refs.move_ref("prod", A, B)
    assert direct.read_ref("prod") == B
    direct.move_ref("prod", B, A)

    def many_moves() -> None:
        for _ in range(KEPT_MOVES // 2):
            direct.move_ref("prod", B, C)
            direct.move_ref("prod", C, B)

    with (
        Proxy(etcd.ports[0], decide=once("lose-answer", path=TXN), before_answer=many_moves) as proxy,
        pytest.raises(RefUncertain, match="too many moves"),
    ):
        through(proxy.port, etcd.ports[1], name=engine_name).move_ref("prod", A, B)


def test_where_nothing_was_sent_a_move_has_surely_not_happened(engine_name: str) -> None:
    refs = through(free_port(), free_port(), name=engine_name)
    with pytest.raises(EngineUnreachable) as caught:
        refs.move_ref("prod", None, A)
    assert not isinstance(caught.value, RefUncertain)
    with pytest.raises(Unanswered, match="refused"):
        refs.read_ref("prod")


# --- members that die -----------------------------------------------------------------------------------------------


def test_a_member_that_is_gone_is_passed_over(etcd: EtcdCluster, engine_name: str) -> None:
    refs = through(free_port(), *etcd.ports, name=engine_name)
    refs.move_ref("prod", None, A)
    assert refs.read_ref("prod") == A


def test_no_move_is_lost_or_doubled_when_the_leader_is_killed(etcd: EtcdCluster, engine_name: str) -> None:
    """Several operators add to one history while the leader dies, twice. Each believes what it was told; the history
    that is left must be exactly what they believe."""
    parents: dict[Digest, Digest | None] = {}
    won: list[Digest] = []
    uncertain: list[Digest] = []
    failures: list[BaseException] = []
    enough = threading.Event()

    def operator(number: int) -> None:
        refs = refs_at(etcd, engine_name)
        step = 0
        try:
            while not enough.is_set():
                head = refs.read_ref("prod")
                step += 1
                mine = digest_of(f"{head} {number} {step}".encode())
                parents[mine] = head
                try:
                    refs.move_ref("prod", head, mine)
                    won.append(mine)
                except RefMoved:
                    pass
                except RefUncertain:
                    uncertain.append(mine)
        except BaseException as error:
            failures.append(error)
            raise

    def wait_for_moves(count: int) -> None:
        enough_moves = len(won) + count
        wait_until(lambda: len(won) >= enough_moves or failures, f"{count} moves")

    threads = [threading.Thread(target=operator, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            wait_for_moves(20)
            killed = etcd.kill_leader()
            wait_for_moves(20)
            etcd.restart(killed)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert failures == []
    history = list(chain_of(parents, refs_at(etcd, engine_name).read_ref("prod")))
    assert len(history) == len(set(history))
    assert set(won) <= set(history)
    assert set(history) - set(won) <= set(uncertain)
    assert len(set(won)) == len(won) >= 80


def chain_of(parents: dict[Digest, Digest | None], head: Digest | None) -> Iterator[Digest]:
    while head is not None:
        yield head
        head = parents[head]


def test_a_watch_goes_on_when_the_leader_is_killed(etcd: EtcdCluster, engine_name: str) -> None:
    refs = refs_at(etcd, engine_name)
    watched = refs_at(etcd, engine_name).watch("prod")
    assert next(watched) is None
    refs.move_ref("prod", None, A)
    assert next(watched) == A
    killed = etcd.kill_leader()
    try:
        refs.move_ref("prod", A, B)
        assert next(watched) == B
    finally:
        etcd.restart(killed)


def test_a_watch_ends_in_an_error_when_nobody_is_left_and_can_be_taken_up_again(
    etcd: EtcdCluster, engine_name: str
) -> None:
    with Proxy(etcd.ports[0], decide=lambda _: "deliver") as proxy:
        refs = through(proxy.port, name=engine_name)
        refs.move_ref("prod", None, A)
    with pytest.raises(EngineUnreachable):
        list(islice(refs.watch("prod"), 2))


# --- the local copy -------------------------------------------------------------------------------------------------


def test_what_was_last_seen_is_read_with_its_age_while_nobody_answers(
    tmp_path: Path, etcd: EtcdCluster, engine_name: str
) -> None:
    now = [1000.0]
    told = Told()
    path = tmp_path / "last-refs.json"
    with Proxy(etcd.ports[0], decide=lambda _: "deliver") as proxy:
        seen = LastSeen(path, "etcd", clock=lambda: now[0])
        refs = RememberedRefs(through(proxy.port, name=engine_name), seen, tell=told)
        refs.move_ref("prod", None, A)
        assert refs.read_ref("unknown") is None
        assert told.ages_s == []
    now[0] += 90
    assert refs.read_ref("prod") == A
    assert refs.refs() == {"prod": A}
    assert told.ages_s == [90, 90]
    with pytest.raises(EngineUnreachable):
        refs.read_ref("never asked for")
    with pytest.raises(EngineUnreachable):
        refs.move_ref("prod", A, B)
    assert refs.read_ref("prod") == A


def test_a_local_copy_is_of_one_engine_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "last-refs.json"
    seen = LastSeen(path, "etcd://one", clock=lambda: 5.0)
    seen.remember({"prod": A, "other": None})
    assert {name: one.to for name, one in seen.recall().items()} == {"prod": A, "other": None}
    assert LastSeen(path, "etcd://two").recall() == {}
    written = path.read_bytes()
    assert msgspec.json.decode(written)["format"] == "lowcloud-last-seen"
    for damaged in (b"", written[:-1], b"\xff" * 9, b"[]"):
        path.write_bytes(damaged)
        assert seen.recall() == {}


def test_what_cannot_be_remembered_is_no_reason_to_fail(tmp_path: Path) -> None:
    LastSeen(tmp_path / "absent" / "last-refs.json", "etcd").remember({"prod": A})


# --- a history that has gone elsewhere ------------------------------------------------------------------------------


def test_a_retired_history_says_where_it_is_and_takes_no_move(etcd: EtcdCluster, engine_name: str) -> None:
    refs = refs_at(etcd, engine_name)
    refs.move_ref("prod", None, A)
    with pytest.raises(RefMoved):
        refs.retire("prod", B, "lmdb")
    refs.retire("prod", A, "lmdb")
    for attempt in (
        lambda: refs.read_ref("prod"),
        refs.refs,
        lambda: refs.move_ref("prod", None, B),
        lambda: refs.move_ref("prod", A, B),
        lambda: next(refs.watch("prod")),
    ):
        with pytest.raises(HistoryMoved, match="lmdb"):
            attempt()
    refs.revive("prod", B)
    assert refs.read_ref("prod") == B
    refs.revive("prod", B)
    with pytest.raises(RefMoved):
        refs.revive("prod", C)


# --- strangers and TLS ----------------------------------------------------------------------------------------------


def test_a_server_that_is_no_etcd_is_not_believed(weed: object, engine_name: str) -> None:
    from tests.engines.servers import Weed

    assert isinstance(weed, Weed)
    with pytest.raises((EngineRefused, EngineUnreachable)):
        through(weed.port, name=engine_name, deadline_s=1.0).read_ref("prod")


def test_clouds_under_one_etcd_do_not_see_each_other(etcd: EtcdCluster, engine_name: str) -> None:
    one, other = refs_at(etcd, engine_name), refs_at(etcd, engine_name + "2")
    one.move_ref("prod", None, A)
    assert other.refs() == {}
    assert f"/{engine_name}/refs/prod".encode() in etcd.written_keys()


def test_with_tls_both_sides_prove_who_they_are(tmp_path: Path, engine_name: str) -> None:
    skip_without_etcd()
    files = certificates(tmp_path)
    cluster = EtcdCluster(tmp_path, members=1, tls=files)
    address = parse_refs(cluster.address(engine_name))
    assert address is not None
    assert address.tls
    authority, certificate, key = map(str, files)
    known = {"ETCDCTL_CACERT": authority, "ETCDCTL_CERT": certificate, "ETCDCTL_KEY": key}
    cluster.start()
    try:
        refs = EtcdRefs(EtcdClient(address, environ=known), engine_name)
        wait_until(lambda: refs.refs() == {}, "the start of etcd with TLS")
        refs.move_ref("prod", None, A)
        assert refs.read_ref("prod") == A
        for without in ({}, {"ETCDCTL_CACERT": authority}):
            stranger = EtcdRefs(EtcdClient(address, environ=without), engine_name, read_deadline_s=1.0)
            with pytest.raises(EngineUnreachable):
                stranger.read_ref("prod")
        with pytest.raises(EngineRefused, match="certificates"):
            EtcdClient(address, environ={"ETCDCTL_CACERT": str(tmp_path / "absent")})
    finally:
        cluster.stop()


def certificates(directory: Path) -> tuple[Path, Path, Path]:
    """One self-signed certificate for 127.0.0.1 that is authority, server and client."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "etcd of the tests")])
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(private)
    return directory / "ca.pem", directory / "ca.pem", directory / "key.pem"
