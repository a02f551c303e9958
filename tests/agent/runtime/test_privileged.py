"""What a host with privileges gives each guest: a user, disk space with an end, and control groups; and that all of it
is gone when the guest is, however it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.daemon.users import BLOCK, FIRST, LAST, Users
from agent.daemon.volumes import DATA, Volumes
from agent.runtime import GuestOrder, Mount, Preopen, kernel_name
from agent.sandbox import cgroups, cpusets, mounts, ownership, privileges
from agent.sandbox.cgroups import Groups, Hierarchy, Limits
from agent.supervisor.client import SupervisorClient, connect
from tests.agent.runtime.support import DEADLINE_S, OTHER_UID, is_alive, needs_root, order, output_of, supervisor, until

MIB = 1 << 20


# --- users ----------------------------------------------------------------------------------------------------------


@needs_root
def test_each_process_has_a_user_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    users = Users(tmp_path)
    web, kv = users.of("web"), users.of("kv")
    assert web is not None
    assert kv is not None
    assert web != kv
    assert FIRST <= web <= LAST
    again = Users(tmp_path)
    assert (again.of("kv"), again.of("web")) == (kv, web)


@needs_root
def test_numbers_are_given_again_only_when_all_are_given_and_their_process_is_gone(tmp_path: Path) -> None:
    users = Users(tmp_path, lambda: {"p0", "p1"})
    users._by_process = {f"p{n}": users._first + n for n in range(BLOCK)}
    assert users.of("fresh") == users._first + 2
    assert users.of("p1") == users._first + 1


@needs_root
def test_a_damaged_list_of_users_is_set_aside(tmp_path: Path) -> None:
    Users(tmp_path).of("web")
    (tmp_path / "users").write_bytes(b"not a list")
    assert Users(tmp_path).of("web") is not None
    assert (tmp_path / "users.damaged-1").exists()


@needs_root
def test_a_guest_with_a_user_of_its_own_reads_its_files_and_writes_its_volume(tmp_path: Path) -> None:
    config, volume = tmp_path / "closed" / "config", tmp_path / "closed" / "volume"
    for directory in (config, volume):
        directory.mkdir(parents=True, mode=0o700)
    (config / "web.toml").write_text("port = 1")
    (config / "web.toml").chmod(0o600)
    tmp_path.chmod(0o700)
    places = (Preopen(str(config), "/etc", False), Preopen(str(volume), "/data", True))

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            await client.spawn(
                order(tmp_path, "read-1", "probe", "read", "/etc/web.toml", preopens=places, uid=OTHER_UID)
            )
            await until(lambda: "port = 1" in output_of(tmp_path, "read-1"), "it has read its configuration")
            await client.spawn(
                order(tmp_path, "write-1", "probe", "write", "/data/kept", "mine", preopens=places, uid=OTHER_UID)
            )
            await until(
                lambda: (volume / "kept").exists() and (volume / "kept").read_text() == "mine", "it has written"
            )

    asyncio.run(scenario())
    assert (volume / "kept").stat().st_uid == volume.stat().st_uid == OTHER_UID
    assert (config / "web.toml").stat().st_uid == 0
    assert (config / "web.toml").stat().st_mode & 0o777 == 0o440


@needs_root
def test_a_volume_of_another_user_becomes_the_next_holders_with_all_that_is_in_it(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(60):
        deep = deep / "d"
        deep.mkdir()
    (deep / "file").write_text("x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    ownership.give(str(tmp_path), OTHER_UID)
    assert (deep / "file").stat().st_uid == OTHER_UID
    assert (tmp_path / "link").lstat().st_uid == OTHER_UID
    assert Path("/etc/passwd").stat().st_uid == 0


# --- disk -----------------------------------------------------------------------------------------------------------

needs_mounts = pytest.mark.skipif(bool(privileges.no_images()), reason="needs the right to mount, and loop devices")


def disk_order(directory: Path, guest: str, volumes: Volumes, *arguments: str) -> GuestOrder:
    """A guest with the volume `kv` at /data and 1 MiB of scratch space at /tmp."""
    scratch = directory / "scratch"
    scratch.mkdir(exist_ok=True)
    mount = volumes.mount("kv")
    assert mount is not None
    places = (Preopen(str(volumes.path("kv")), "/data", True), Preopen(str(scratch), "/tmp", True))
    made = order(directory, guest, "probe", *arguments, preopens=places, uid=OTHER_UID)
    return msgspec.structs.replace(made, mounts=(mount, Mount(str(scratch), MIB)))


def made_volume(directory: Path, size_bytes: int) -> tuple[Volumes, str]:
    """A volume `kv` and its image."""
    volumes = Volumes(directory / "volumes")
    volumes.create("kv", size_bytes)
    mount = volumes.mount("kv")
    assert mount is not None
    return volumes, mount.image


@needs_mounts
def test_a_volume_and_scratch_space_end_where_the_definition_says_and_nothing_stays_mounted(tmp_path: Path) -> None:
    volumes, image = made_volume(tmp_path, 8 * MIB)

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for number, (path, mib) in enumerate(
                [("/data/x", "9"), ("/tmp/x", "2"), ("/data/x", "4"), ("/tmp/x", "0")]
            ):
                guest = f"fill-{number}"
                await client.spawn(disk_order(tmp_path, guest, volumes, "fill", path, mib))
                await until(lambda guest=guest: output_of(tmp_path, guest).endswith("\n"), "it has tried")
                await client.kill(guest)
                assert mounts.attached(image) == []

    asyncio.run(scenario())
    said = [output_of(tmp_path, f"fill-{number}") for number in range(4)]
    assert ["ok" in one for one in said] == [False, False, True, True], said
    assert "no space" in said[0] or "insufficient" in said[0], said[0]
    assert not os.path.ismount(volumes.path("kv"))
    assert list(volumes.path("kv").iterdir()) == []
    assert 4 * MIB <= volumes.used_bytes("kv") <= 8 * MIB


@needs_mounts
def test_what_is_in_a_volume_outlives_its_guest_and_grows_with_the_volume(tmp_path: Path) -> None:
    volumes, _ = made_volume(tmp_path, 4 * MIB)

    async def run_one(client: SupervisorClient, guest: str, *arguments: str) -> str:
        await client.spawn(disk_order(tmp_path, guest, volumes, *arguments))
        await until(lambda: output_of(tmp_path, guest) != "", "it has said something")
        await client.kill(guest)
        return output_of(tmp_path, guest)

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            assert "ok" in await run_one(client, "one-1", "write", "/data/kept", "mine")
            volumes.create("kv", 32 * MIB)
            assert "mine" in await run_one(client, "two-1", "read", "/data/kept")
            assert "ok" in await run_one(client, "three-1", "fill", "/data/x", "20")

    asyncio.run(scenario())


@needs_mounts
@pytest.mark.parametrize("victim", ["guest", "supervisor"])
def test_kill_9_leaves_neither_a_mount_nor_a_loop_device(tmp_path: Path, victim: str) -> None:
    volumes, image = made_volume(tmp_path, 4 * MIB)

    async def scenario() -> None:
        client = await connect(tmp_path)
        state = await client.spawn(disk_order(tmp_path, "spin-1", volumes, "spin"))
        await client.wait_ready("spin-1", None, deadline_s=DEADLINE_S)
        assert len(mounts.attached(image)) == 1
        if victim == "supervisor":
            os.kill(client.supervisor_pid, signal.SIGKILL)
            await client.close()
            await until(lambda: not is_alive(client.supervisor_pid), "the supervisor is dead")
            async with supervisor(tmp_path) as successor:  # takes the guest over with what it has mounted
                assert [one.pid for one in (await successor.guests()).values()] == [state.pid]
                assert len(mounts.attached(image)) == 1
            await until(lambda: mounts.attached(image) == [], "the loop device is free")
            return
        os.kill(state.pid, signal.SIGKILL)
        await until(lambda: mounts.attached(image) == [], "the loop device is free")
        await client.shut_down()

    asyncio.run(scenario())
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@needs_mounts
def test_an_image_in_use_is_not_mounted_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, image = made_volume(tmp_path, 4 * MIB)
    monkeypatch.setattr(mounts, "BUSY_DEADLINE_S", 0.05)

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            await client.spawn(disk_order(tmp_path, "spin-1", volumes, "spin"))
            with pytest.raises(mounts.MountFailed, match="still in use"):
                mounts.mount_image(image, str(tmp_path))

    asyncio.run(scenario())


def test_without_the_right_to_mount_a_volume_is_a_plain_directory(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path, no_images=lambda: "may not mount")
    volumes.create("kv", MIB)
    assert volumes.mount("kv") is None
    (volumes.path("kv") / "x").write_bytes(bytes(8192))
    assert volumes.used_bytes("kv") >= 8192
    again = Volumes(tmp_path)  # with the right by now: what a volume was made as it stays
    again.create("kv", 2 * MIB)
    assert again.mount("kv") is None
    assert (tmp_path / "kv" / DATA / "x").exists()


# --- control groups -------------------------------------------------------------------------------------------------

V1 = """cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
V1_OWN = "4:memory:/user/one\n3:cpu,cpuacct:/\n0::/user.slice\n"


def test_both_versions_of_control_groups_are_found_where_the_agent_is() -> None:
    everything = ("memory", "cpu", "pids", "cpuset")
    assert cgroups.hierarchies(V1, V1_OWN) == [
        Hierarchy(Path("/sys/fs/cgroup/cpu"), 1, ("cpu",)),
        Hierarchy(Path("/sys/fs/cgroup/memory/user/one"), 1, ("memory",)),
        Hierarchy(Path("/sys/fs/cgroup/unified"), 2, everything),
    ]
    for own, places in {
        "/": ["/sys/fs/cgroup"],
        "/system.slice/agent.service": ["/sys/fs/cgroup", "/sys/fs/cgroup/system.slice"],
        "/user.slice/lowcloud.service/agent": ["/sys/fs/cgroup/user.slice/lowcloud.service"],
    }.items():
        alone = cgroups.hierarchies("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", f"0::{own}\n")
        assert alone == [Hierarchy(Path(place), 2, everything) for place in places]
    assert cgroups.hierarchies("", "") == []


def test_limits_are_said_in_the_words_of_each_version() -> None:
    half = Limits(64 * MIB, 500)
    assert cgroups.files_of(1, ("memory", "cpu"), half) == {"memory.limit_in_bytes": "67108864", "cpu.shares": "512"}
    said = cgroups.files_of(2, ("memory", "cpu", "pids"), half)
    assert (said["memory.max"], said["cpu.weight"], said["pids.max"]) == ("67108864", "50", "512")
    assert cgroups.files_of(2, ("cpu",), Limits(1, 1))["cpu.weight"] == "1"
    assert cgroups.files_of(1, ("cpu",), Limits(1, 1))["cpu.shares"] == "2"


@given(st.sets(st.integers(0, 255)))
def test_cpus_are_heard_as_they_were_said(cpus: set[int]) -> None:
    assert cpusets.heard(cpusets.said(sorted(cpus)) + "\n") == tuple(sorted(cpus))
    assert cpusets.heard("0-2,5\n") == (0, 1, 2, 5)


def test_a_machine_without_control_groups_limits_nothing_and_fails_nothing() -> None:
    groups = Groups("none", ())
    assert groups.make("web", "web-1", Limits(MIB, 100)) == ()
    groups.remove("web", "web-1")
    groups.sweep(())
    assert dict(groups.controllers) == {}


@needs_root
def test_a_guest_is_in_its_groups_and_they_go_when_it_has_gone(tmp_path: Path) -> None:
    groups = Groups.open(f"lowcloud-test-{kernel_name(tmp_path)}")
    assert set(groups.controllers) >= {"memory", "cpu", "pids"}

    async def scenario() -> tuple[str, ...]:
        directories = groups.make("spin", "spin-1", Limits(256 * MIB, 500))
        try:
            async with supervisor(tmp_path) as client:
                made = order(tmp_path, "spin-1", "probe", "spin", uid=OTHER_UID)
                state = await client.spawn(msgspec.structs.replace(made, cgroups=directories))
                assert all(state.pid in members_of(directory) for directory in directories)
                groups.change("spin", "spin-1", Limits(256 * MIB, 250))
                assert groups.sweep({"spin-1"}), "what is known is not asked for"
                assert not groups.sweep(()), "it is busy, and who sweeps is told"
                await client.kill("spin-1")
        finally:
            groups.remove("spin", "spin-1")
        return directories

    for directory in asyncio.run(scenario()):
        assert not Path(directory).exists()
        assert not Path(directory).parent.exists()


@needs_root
def test_two_guests_on_one_core_get_what_their_shares_say(tmp_path: Path) -> None:
    groups = Groups.open(f"lowcloud-test-{kernel_name(tmp_path)}")
    shares = {"small-1": 200, "large-1": 800}

    async def scenario() -> dict[str, float]:
        try:
            async with supervisor(tmp_path) as client:
                pids = {}
                for guest, milli in shares.items():
                    made = order(tmp_path, guest, "probe", "spin", cpus=(max(os.sched_getaffinity(0)),), uid=OTHER_UID)
                    directories = groups.make(guest, guest, Limits(256 * MIB, milli))
                    pids[guest] = (await client.spawn(msgspec.structs.replace(made, cgroups=directories))).pid
                before = {guest: cpu_ticks(pid) for guest, pid in pids.items()}
                await until(lambda: cpu_ticks(pids["large-1"]) - before["large-1"] >= 60, "it has run for a while")
                return {guest: cpu_ticks(pid) - before[guest] for guest, pid in pids.items()}
        finally:
            groups.sweep(())

    ran = asyncio.run(scenario())
    assert ran["large-1"] > 2 * ran["small-1"], ran


@needs_root
def test_a_process_that_outgrows_its_group_is_ended_and_says_why(tmp_path: Path) -> None:
    groups = Groups.open(f"lowcloud-test-{kernel_name(tmp_path)}")

    async def scenario() -> None:
        try:
            async with supervisor(tmp_path) as client:
                made = order(
                    tmp_path, "alloc-1", "probe", "alloc", "200", "hold", memory_bytes=256 * MIB, uid=OTHER_UID
                )
                directories = groups.make("alloc", "alloc-1", Limits(100 * MIB, 1000))
                await client.spawn(msgspec.structs.replace(made, cgroups=directories))

                async def ended() -> bool:
                    return (await client.guests())["alloc-1"].exit_code is not None

                await until(ended, "the kernel has ended it")
                state = (await client.guests())["alloc-1"]
                assert state.exit_code == 128 + signal.SIGKILL
                assert "more memory than its limit" in state.exit_reason
        finally:
            groups.sweep(())

    asyncio.run(scenario())


def members_of(group: str) -> list[int]:
    return [int(pid) for pid in Path(group, "cgroup.procs").read_text().split()]


def cpu_ticks(pid: int) -> int:
    """User time of a process (field 14 of its `stat`), in clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
