"""A volume that grows while its guest uses it: at once where the host may do that, else at the next start."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from agent.sandbox import growing, mounts, privileges
from tests.agent.runtime.support import output_of, supervisor, until
from tests.agent.runtime.test_privileged import MIB, disk_order, made_volume, needs_mounts


@needs_mounts
def test_a_volume_in_use_has_its_new_size_at_once_or_at_the_next_start_and_says_which(tmp_path: Path) -> None:
    volumes, image = made_volume(tmp_path, 8 * MIB)
    small, large = 8 * MIB, 64 * MIB

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            state = await client.spawn(disk_order(tmp_path, "spin-1", volumes, "spin"))
            directory = f"/proc/{state.pid}/root{volumes.path('kv')}"
            assert size_of(directory) < small
            volumes.create("kv", large)
            problem = growing.grow_in_use(image, str(volumes.path("kv")), state.pid)
            if privileges.no_growing():
                assert "SYS_RESOURCE" in problem
                assert size_of(directory) < small
            else:
                assert problem == ""
                assert small < size_of(directory) <= large
            await client.kill("spin-1")
            assert mounts.attached(image) == []
            assert await asyncio.to_thread(is_clean, image)
            await client.spawn(disk_order(tmp_path, "fill-1", volumes, "fill", "/data/x", "40"))
            await until(lambda: "fill" in output_of(tmp_path, "fill-1"), "it has tried")
            assert "fill ok" in output_of(tmp_path, "fill-1")

    asyncio.run(scenario())
    assert mounts.file_system_bytes(image) > large - 2 * MIB


@needs_mounts
def test_what_nobody_uses_or_what_is_no_file_system_keeps_its_size_and_says_why(tmp_path: Path) -> None:
    volumes, image = made_volume(tmp_path, 8 * MIB)
    assert growing.grow_in_use(image, str(volumes.path("kv")), os.getpid()) != ""


def size_of(directory: str) -> int:
    facts = os.statvfs(directory)
    return facts.f_blocks * facts.f_frsize


def is_clean(image: str) -> bool:
    return subprocess.run(["/usr/sbin/e2fsck", "-fn", image], capture_output=True, check=False).returncode == 0
