"""Landlock: the files a guest's process may reach, and whom it may signal, denied by the kernel for good.

The engine checks every path by itself; this is the wall behind it. Rules name the guest's own directories, everything
else is refused, also through `/proc`, symbolic links, or a path that the engine got wrong. Rights are those of the
kernel's Landlock version (`abi`); a right that an older kernel does not know cannot be denied there, and
`agent.daemon.guarantees` says so. Format: `linux/landlock.h`.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from agent.sandbox import linux

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_EXECUTE: Final = 1 << 0
_IOCTL_DEV: Final = 1 << 15
_FILE_RIGHTS_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights on files that an ABI knows: ABI 2 adds REFER, 3 TRUNCATE, 5 IOCTL_DEV."""
_SCOPE_ABI: Final = 6
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 3


class Directory(NamedTuple):
    path: str
    writable: bool


def abi() -> int:
    """The kernel's Landlock version; 0 where it has none or it is switched off."""
    try:
        return linux.syscall("Landlock", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def file_rights(version: int) -> int:
    """All rights on files that this version can deny."""
    return next((rights for since, rights in sorted(_FILE_RIGHTS_BY_ABI.items(), reverse=True) if version >= since), 0)


def ruleset(directories: Iterable[Directory]) -> int:
    """A descriptor of rules that leave nothing but these directories. It opens them, so it comes while this process
    still may. Raises OSError; ENOSYS or EOPNOTSUPP where the kernel has no Landlock."""
    version = abi()
    if version == 0:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no Landlock")
    rights = file_rights(version)
    scope = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPE_ABI else 0
    attributes = struct.pack("QQQ", rights, 0, scope)[: 24 if version >= _SCOPE_ABI else 8]
    made = linux.syscall("Landlock ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for directory in directories:
            _allow(made, directory, rights)
    except BaseException:
        os.close(made)
        raise
    return made


def enforce(made: int) -> None:
    """Bind this thread, and those it starts, to a ruleset, and close it. No new privileges must be set before. Raises
    OSError."""
    try:
        linux.syscall("Landlock", _RESTRICT_SELF, made, 0)
    finally:
        os.close(made)


def _allow(made: int, directory: Directory, rights: int) -> None:
    wanted = rights & ~_EXECUTE & ~_IOCTL_DEV if directory.writable else _READ_FILE | _READ_DIR
    parent = os.open(directory.path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        rule = struct.pack("=Qi", wanted, parent)
        linux.syscall(f"Landlock rule for {directory.path}", _ADD_RULE, made, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(parent)
