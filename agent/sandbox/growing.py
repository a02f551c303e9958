"""Growing the file system of a volume while its guest uses it.

The image is larger by now; the loop device is told to look again, and ext4, through a directory that is opened in the
guest's mount namespace, to take what it finds. The kernel asks for CAP_SYS_RESOURCE, in the first user namespace: a
container rarely has it, and then the file system grows when it is mounted the next time (`mounts.grow_to_fit`).

Requests: `linux/loop.h`, `Documentation/filesystems/ext4` (EXT4_IOC_RESIZE_FS).
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from agent.sandbox import mounts, privileges

_SET_CAPACITY: Final = 0x4C07
_RESIZE: Final = 0x40086610
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def grow_in_use(image: str, target: str, pid: int) -> str:
    """Why the file system in an image that a guest has mounted keeps its size until the next start; "" where it has the
    image's size now."""
    problem = privileges.no_growing()
    if problem:
        return problem
    devices = mounts.attached(image)
    if len(devices) != 1:
        return f"it is attached to {len(devices)} loop devices"
    try:
        _look_again(devices[0])
        directory = os.open(f"/proc/{pid}/root{target}", _DIRECTORY)
        try:
            facts = os.fstatvfs(directory)
            blocks = Path(image).stat().st_size // facts.f_frsize
            fcntl.ioctl(directory, _RESIZE, struct.pack("=Q", blocks))
        finally:
            os.close(directory)
    except OSError as error:
        return str(error)
    return ""


def _look_again(device: str) -> None:
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_CAPACITY)
    finally:
        os.close(descriptor)
