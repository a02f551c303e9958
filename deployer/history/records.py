"""How a release or a plan is written as a blob: a line that says what it is, and one msgpack map.

    lowcloud release 1\\n<msgpack>

The line makes a blob recognisable with `head -1`, and a reader refuses a version that it does not know. The msgpack is
written in one way only (fields in the order of their declaration, other maps sorted by key, the shortest forms), so
equal content has one name. A reader does not ask for that: a record is named by its bytes, and one that an older
program wrote stays readable when a field with a default has been added.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from deployer.errors import RecordInvalid

VERSION: Final = 1
MAX_LINE_BYTES: Final = 64

T = TypeVar("T", bound=msgspec.Struct)


def seal(kind: str, record: msgspec.Struct) -> bytes:
    """The bytes of a record of this kind (`release`, `plan`)."""
    # By way of plain maps: the head of a structure's map depends on how many fields are declared, also those left out.
    plain = msgspec.to_builtins(record, builtin_types=(bytes,), order="deterministic")
    return _line(kind, VERSION) + msgspec.msgpack.encode(plain)


def unseal(kind: str, data: bytes, as_type: type[T], *, max_bytes: int) -> T:
    """The record behind bytes that `seal` made. Raises RecordInvalid for anything else."""
    if len(data) > max_bytes:
        raise RecordInvalid(f"a {kind} of {len(data)} bytes is larger than the {max_bytes} that are accepted")
    line, newline, body = data.partition(b"\n")
    if line + newline != _line(kind, VERSION):
        raise RecordInvalid(_complaint(kind, line if newline else b""))
    try:
        return msgspec.msgpack.decode(body, type=as_type)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RecordInvalid(f"this is no {kind}: {error}") from error


def _line(kind: str, version: int) -> bytes:
    return f"lowcloud {kind} {version}\n".encode()


def _complaint(kind: str, line: bytes) -> str:
    prefix = f"lowcloud {kind} ".encode()
    version = line.removeprefix(prefix)
    if len(line) <= MAX_LINE_BYTES and line.startswith(prefix) and version.isdigit():
        return f"this {kind} has version {version.decode()}; this lowcloud reads version {VERSION}"
    return f"this blob is no {kind}"
