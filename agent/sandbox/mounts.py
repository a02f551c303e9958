"""Disk space with a limit that the kernel keeps: each piece is a file system of its own, mounted by the guest's process
before it gives up its rights, in a mount namespace of its own.

So nothing can leak: when the guest's process ends, for whatever reason, the kernel unmounts, and a loop device lets go
of its image (`LO_FLAGS_AUTOCLEAR`) before anybody learns of the end. A volume is a sparse file with an ext4 file system
in it; scratch space is memory. Nobody but the guest sees what is mounted; what an image takes on disk is visible from
outside, because freed blocks are given back (`discard`).

Formats: `struct loop_config` of `linux/loop.h`, the superblock of `Documentation/filesystems/ext4` of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.runtime import Mount
from agent.sandbox import linux
from agent.sandbox.privileges import LOOP_CONTROL, SYSTEM_PATH

BUSY_DEADLINE_S: Final = 10.0
BUSY_RETRY_S: Final = 0.01
SCRATCH_BYTES_PER_FILE: Final = 16 << 10
SCRATCH_FILES_AT_LEAST: Final = 256
"""Files of a tmpfs cost memory that its size does not count, so there are only so many."""
MAX_ATTEMPTS: Final = 64
ROUNDING_BYTES: Final = 1 << 20
"""A file system may be so much smaller than its device: it ends at a whole block, and wants no group of a few."""
FSCK_CORRECTED: Final = 1

_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_AUTOCLEAR: Final = 4
_LOOP_INFO_BYTES: Final = 232
_LOOP_FLAGS_AT: Final = 52
_CONFIG: Final = struct.Struct(f"=II{_LOOP_INFO_BYTES}s64x")
_FLAGS: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_SUPERBLOCK_AT: Final = 1024
_SUPERBLOCK_BYTES: Final = 1024
_MAGIC_AT: Final = 0x38
_EXT4_MAGIC: Final = b"\x53\xef"
_BLOCK_COUNT_AT: Final = (0x4, 0x150)
_LOG_BLOCK_SIZE_AT: Final = 0x18
_BLOCK_DEVICES: Final = Path("/sys/block")
LOST_AND_FOUND: Final = "lost+found"


class MountFailed(Exception):
    """A guest's disk space could not be mounted. The message says which and why."""


def mount_all(mounts: Iterable[Mount]) -> None:
    """Mount these for this process alone. Raises MountFailed, OSError."""
    mounts = tuple(mounts)
    if not mounts:
        return
    linux.own_mounts()
    for one in mounts:
        if one.image:
            mount_image(one.image, one.target)
        else:
            files = max(SCRATCH_FILES_AT_LEAST, one.size_bytes // SCRATCH_BYTES_PER_FILE)
            linux.mount("scratch", one.target, "tmpfs", _FLAGS, f"size={one.size_bytes},nr_inodes={files},mode=700")


def mount_image(image: str, target: str) -> None:
    """Mount a file that holds an ext4 file system, as large as the file is by now. An image that somebody else has
    mounted (a guest that is ending) is waited for: twice mounted it would be destroyed. Raises MountFailed, OSError."""
    deadline = time.monotonic() + BUSY_DEADLINE_S
    while attached(image):
        if time.monotonic() >= deadline:
            raise MountFailed(f"{image} is still in use by {attached(image)[0]} after {BUSY_DEADLINE_S:g} s")
        time.sleep(BUSY_RETRY_S)
    grow_to_fit(image)
    with _attach(image) as device:
        linux.mount(device.name, target, "ext4", _FLAGS, "discard,errors=remount-ro")
    with contextlib.suppress(OSError):
        Path(target, LOST_AND_FOUND).rmdir()


def attached(image: str) -> list[str]:
    """The loop devices that an image is attached to."""
    found = []
    for path in _BLOCK_DEVICES.glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if Path(path.read_text().rstrip("\n")).samefile(image):
                found.append(f"/dev/{path.parent.parent.name}")
    return found


class _Device:
    """A loop device that this process holds open; its path is `name`. It lives on while it is mounted."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _attach(image: str) -> _Device:
    info = bytearray(_LOOP_INFO_BYTES)
    struct.pack_into("=I", info, _LOOP_FLAGS_AT, _AUTOCLEAR)
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    control = os.open(LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(MAX_ATTEMPTS):
            name = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, 0, bytes(info)))
                return _Device(device, name)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise
    finally:
        os.close(control)
        os.close(backing)
    raise MountFailed(f"no loop device is free for {image}")


def file_system_bytes(image: str) -> int:
    """The size of the ext4 file system in an image, as its superblock says; 0 where there is none. Raises OSError."""
    with Path(image).open("rb") as file:
        file.seek(_SUPERBLOCK_AT)
        block = file.read(_SUPERBLOCK_BYTES)
    if len(block) < _SUPERBLOCK_BYTES or block[_MAGIC_AT : _MAGIC_AT + 2] != _EXT4_MAGIC:
        return 0
    low, high = (int.from_bytes(block[at : at + 4], "little") for at in _BLOCK_COUNT_AT)
    return (high << 32 | low) << 10 + int.from_bytes(block[_LOG_BLOCK_SIZE_AT : _LOG_BLOCK_SIZE_AT + 4], "little")


def grow_to_fit(image: str) -> None:
    """Grow the file system in an image that nobody uses to the size of the image. (Growing one in use would take
    CAP_SYS_RESOURCE, which containers rarely have.) Raises MountFailed, OSError."""
    if Path(image).stat().st_size - file_system_bytes(image) < ROUNDING_BYTES:
        return
    for command in (["e2fsck", "-f", "-p", image], ["resize2fs", image]):
        done = subprocess.run(command, env={"PATH": SYSTEM_PATH}, capture_output=True, text=True, check=False)
        if done.returncode > FSCK_CORRECTED:
            raise MountFailed(f"{image} cannot grow: {' '.join(command)}: {(done.stderr or done.stdout)[-500:]}")
