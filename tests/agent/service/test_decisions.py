"""The pure parts: which CPUs, whether there is room, which files where, how long to wait."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.journal import Event, JournalEntry
from agent.api.processes import Endpoint, ProcessSpec
from agent.daemon import host, trees
from agent.daemon.backoff import FIRST_S, GOOD_RUN_S, MOST_S, Backoff, starts_again
from agent.daemon.builder import environment
from agent.daemon.capacity import Limits, conflict, shortage
from agent.daemon.guest_files import plan_files
from agent.daemon.placement import MILLI, assign, closable
from agent.daemon.refusal import Refused
from agent.daemon.retention import blobs_of_last_releases
from agent.runtime import Preopen
from cas.digest import digest_of
from tests.agent.service.support import changed, web

BLOB = digest_of(b"blob")
WANTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([100, 500, 1000, 1500, 2000, 3000]))


@given(st.sets(st.integers(0, 15), min_size=1), WANTS, WANTS)
def test_whole_cores_are_dedicated_and_nothing_moves_without_need(
    cpus: set[int], wants: dict[str, int], more: dict[str, int]
) -> None:
    first = assign(sorted(cpus), wants, {})
    assert set(first) == set(wants)
    if sum(wants.values()) > len(cpus) * MILLI:
        assert not any(first.values())
        return
    dedicated = {
        name: got for name, got in first.items() if wants[name] % MILLI == 0 and len(got) * MILLI == wants[name]
    }
    taken = [cpu for got in dedicated.values() for cpu in got]
    assert len(taken) == len(set(taken))
    for name, got in first.items():
        assert set(got) <= cpus
        if name not in dedicated:
            assert not set(got) & set(taken)
    both = {**more, **wants}
    second = assign(sorted(cpus), both, first)
    if sum(both.values()) <= len(cpus) * MILLI and not any(milli % MILLI for milli in both.values()):
        assert all(second[name] == got for name, got in dedicated.items() if len(got) < len(cpus))


@given(st.sets(st.integers(0, 15), min_size=1), WANTS, WANTS)
def test_what_is_closed_to_others_is_one_process_s_and_never_the_first_cpu(
    cpus: set[int], wants: dict[str, int], before: dict[str, int]
) -> None:
    given = assign(sorted(cpus), wants, assign(sorted(cpus), before, {}))
    alone = closable(sorted(cpus), wants, given)
    closed = [cpu for name in alone for cpu in given[name]]
    assert len(closed) == len(set(closed))
    assert min(cpus) not in closed
    assert all(wants[name] % MILLI == 0 for name in alone)
    assert not {cpu for name in wants.keys() - alone for cpu in given[name]} & set(closed)


def test_what_would_exceed_the_host_is_named() -> None:
    limits = Limits(cores_milli=2000, memory_bytes=256 << 20, disk_bytes=1 << 20)
    one = web(BLOB)
    assert shortage(limits, {"one": one, "two": one}, 1 << 20) == ""
    assert "cores" in shortage(limits, {"a": one, "b": one, "c": one}, 0)
    assert "memory" in shortage(limits, {"a": changed(one, memory_bytes=257 << 20)}, 0)
    assert "disk" in shortage(limits, {"a": changed(one, disk_bytes=1)}, 1 << 20)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (("127.0.0.1", 80, "tcp"), ("127.0.0.1", 80, "tcp"), True),
        (("127.0.0.1", 80, "tcp"), ("127.0.0.1", 81, "tcp"), False),
        (("127.0.0.1", 80, "tcp"), ("127.0.0.1", 80, "udp"), False),
        (("127.0.0.1", 80, "tcp"), ("127.0.0.2", 80, "tcp"), False),
        (("0.0.0.0", 80, "tcp"), ("127.0.0.2", 80, "tcp"), True),
        (("::", 80, "tcp"), ("127.0.0.2", 80, "tcp"), False),
        (("::", 80, "tcp"), ("::1", 80, "tcp"), True),
        (("0.0.0.0", 80, "tcp"), ("::1", 80, "tcp"), False),
    ],
)
def test_listeners_are_in_each_others_way_where_a_connection_could_reach_both(
    one: tuple[str, int, str], other: tuple[str, int, str], both: bool
) -> None:
    left, right = endpoint(*one), endpoint(*other)
    a, b = web(BLOB, listen={"x": left}), web(BLOB, listen={"y": right})
    assert bool(conflict({"a": a, "b": b})) == bool(conflict({"b": b, "a": a})) == both


def test_very_many_listeners_are_compared_in_no_time() -> None:
    listen = {f"l{port}": Endpoint("127.0.0.1", port) for port in range(1, 60_000)}
    began = time.thread_time()  # of the processor: what else the machine does costs nothing
    assert conflict({"a": web(BLOB, listen=listen)}) == ""
    assert time.thread_time() - began < 10


def endpoint(address: str, port: int, protocol: str) -> Endpoint:
    return Endpoint(address, port, "udp" if protocol == "udp" else "tcp")


def test_configuration_files_share_a_directory_for_each_topmost_parent() -> None:
    spec = web(BLOB, config={"/etc/a": BLOB, "/etc/b/c": BLOB, "/opt/d": BLOB}, volume={"/etc/data": "v"}, disk_bytes=1)
    plan = plan_files(spec)
    assert plan.files == {"config/0/a": BLOB, "config/0/b/c": BLOB, "config/1/d": BLOB}
    assert plan.preopens(Path("/g"), {"v": Path("/v/data")}) == (
        Preopen("/g/config/0", "/etc", False),
        Preopen("/g/config/1", "/opt", False),
        Preopen("/v/data", "/etc/data", True),
        Preopen("/g/scratch", "/tmp", True),
    )
    assert plan_files(web(BLOB, config={"/a": BLOB, "/etc/b": BLOB})).roots == {"/": "config/0"}


PATHS = st.lists(st.sampled_from(["a", "b", "tmp"]), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@given(st.sets(PATHS, max_size=4), st.dictionaries(PATHS, st.sampled_from(["v", "w"]), max_size=3), st.booleans())
def test_every_planned_file_is_found_by_the_longest_directory_that_contains_it(
    config: set[str], volume: dict[str, str], scratch: bool
) -> None:
    spec = web(BLOB, config=dict.fromkeys(config, BLOB), volume=volume, disk_bytes=int(scratch))
    try:
        plan = plan_files(spec)
    except Refused:
        return
    preopens = plan.preopens(Path("/own"), {name: Path("/volumes", name) for name in ("v", "w")})
    assert len({p.guest_path for p in preopens}) == len(preopens)
    for path in config:
        best = max((p for p in preopens if within(path, p.guest_path)), key=lambda p: len(p.guest_path))
        assert not best.writable
        relative = path[len(best.guest_path) :].lstrip("/")
        assert f"{best.host_path}/{relative}".removeprefix("/own/") in plan.files
    for path in volume:
        best = max((p for p in preopens if within(path, p.guest_path)), key=lambda p: len(p.guest_path))
        assert best.writable
        assert best.guest_path == path


def within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def test_the_environment_is_what_the_specification_says_and_its_addresses() -> None:
    spec = ProcessSpec(
        name="web",
        binary=BLOB,
        env={"A": "1"},
        listen={"http": Endpoint("::1", 80)},
        connect={"kv-main": Endpoint("10.0.0.1", 6379)},
    )
    assert environment(spec) == {
        "A": "1",
        "LOWCLOUD_LISTEN_HTTP": "[::1]:80",
        "LOWCLOUD_CONNECT_KV_MAIN": "10.0.0.1:6379",
    }


def test_waits_double_up_to_a_bound_and_start_over_after_a_good_run() -> None:
    backoff = Backoff()
    waits = [backoff.wait_s(0.0) for _ in range(12)]
    assert waits[:4] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    assert waits[-1] == MOST_S
    assert backoff.wait_s(GOOD_RUN_S) == FIRST_S


def test_restart_rules() -> None:
    assert [starts_again("always", code) for code in (0, 1)] == [True, True]
    assert [starts_again("on-failure", code) for code in (0, 1)] == [False, True]
    assert [starts_again("never", code) for code in (0, 1)] == [False, False]


def test_what_the_last_releases_ran_is_kept_and_also_what_they_did_not_touch() -> None:
    def served(process: str, release: str) -> JournalEntry:
        blob = digest_of(f"{process} of {release}".encode())
        return JournalEntry(
            seq=0,
            at_unix_ns=0,
            previous=None,
            host="h",
            event=Event.SERVING,
            process=process,
            binary=blob,
            release=digest_of(release.encode()),
        )

    entries = [served("web", "1"), served("kv", "1"), served("web", "2"), served("web", "3")]
    blob = {(e.process, n): e.binary for e, n in zip(entries, "1123", strict=True)}
    assert blobs_of_last_releases(entries, 0) == set()
    assert blobs_of_last_releases(entries, 1) == {blob["web", "2"], blob["web", "3"], blob["kv", "1"]}
    assert blobs_of_last_releases(entries, 2) == set(blob.values())


def test_addresses_are_read_from_what_the_kernel_says() -> None:
    leaf = "     |-- {}\n        /32 host LOCAL\n"
    fib = "Main:\n  +-- 0.0.0.0/0 3 0 5\n" + leaf.format("10.0.0.7") + leaf.format("127.0.0.1")
    assert host.ipv4_addresses(fib) == ["10.0.0.7"]
    six = "00000000000000000000000000000001 01 80 10 80 lo\nfd000000000000000000000000000002 02 40 00 80 eth0\n"
    assert host.ipv6_addresses(six) == ["fd00::2"]
    assert host.memory_bytes() > 0
    assert host.usable_cpus()


def test_a_tree_deeper_than_any_path_is_counted_and_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path)
    (tmp_path / "kept").write_text("x")
    inner = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=inner)
        outer, inner = inner, os.open("deep", os.O_RDONLY, dir_fd=inner)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=inner))
        os.close(outer)
    os.close(inner)
    (top / "data").write_bytes(bytes(8192))
    assert trees.used_bytes(top) >= 8192
    trees.remove_tree(top)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    trees.remove_tree(top)


def test_very_many_files_are_laid_out_in_no_time_and_impossible_names_refused() -> None:
    began = time.thread_time()
    assert len(plan_files(web(BLOB, config={f"/d{number}/x": BLOB for number in range(4096)})).roots) == 4096
    assert time.thread_time() - began < 2
    for spec in (web(BLOB, config={f"/{'é' * 128}": BLOB}), web(BLOB, volume={f"/v{n}": "v" for n in range(257)})):
        with pytest.raises(Refused):
            plan_files(spec)
