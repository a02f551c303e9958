"""What all of the API is made of: structures, bounded types, and the one encoding that digests are taken of.

A version of a process is the digest of its specification, a call's name that of its envelope, and a journal is a chain
of digests. So a value must have one encoding only, which stays the same in every later version of the API: `Struct`
says what that asks of a new field, `canonical` is the encoding.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

ProcessName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}\Z", description="lower-case letters, digits, hyphens")
]
GuestPath = Annotated[
    str,
    Meta(
        pattern=r"^(/(?!\.{1,2}(/|\Z))[^/\x00-\x1f\x7f]+)+\Z",
        max_length=1024,
        description="an absolute path that the guest sees, without `.` and `..`",
    ),
]
Text = Annotated[str, Meta(max_length=65536)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of everything on the wire: immutable, and a field that the reader does not know is an error.

    Digests leave fields out that have their default, so a later version may add a field with a default, and every
    specification and journal entry keeps its digest. For the same reason a default, once released, never changes. A
    later field whose default is `UNSET` is not even sent where it is not used: neither an older reader nor a file that
    an older program has written sees a difference.
    """


def canonical(value: Struct) -> bytes:
    """The one encoding of a value that its digest is taken of: msgpack with sorted keys, every number in the type that
    its field declares (a Python caller may have given the float field an int), and no field that has its default."""
    return canonical_of(msgspec.msgpack.encode(value), type(value))


def canonical_of(encoded: bytes, kind: type[Struct]) -> bytes:
    """As `canonical`, of a value that was encoded by msgspec."""
    typed = msgspec.msgpack.decode(encoded, type=kind)
    return msgspec.msgpack.encode(_without_defaults(typed), order="deterministic")


def _without_defaults(value: Any) -> Any:
    """msgspec's own `omit_defaults` goes by identity, so an equal value would be left out or not by how it came to
    be."""
    if isinstance(value, msgspec.Struct):
        tag, defaults = _shape_of(type(value))
        kept = dict(tag)
        for name, encoded_name, default in defaults:
            held = getattr(value, name)
            if held != default:
                kept[encoded_name] = held if type(held) in _PLAIN else _without_defaults(held)
        return kept
    if isinstance(value, tuple):
        return [item if type(item) in _PLAIN else _without_defaults(item) for item in value]
    if isinstance(value, dict):
        return {key: item if type(item) in _PLAIN else _without_defaults(item) for key, item in value.items()}
    return value


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""What has no defaults in it; most of a specification is such values."""


@functools.cache
def _shape_of(kind: type[msgspec.Struct]) -> tuple[dict[str, Any], tuple[tuple[str, str, Any], ...]]:
    """A structure's tag, and for each field its name, its name on the wire, and its default. Found once for each kind:
    a fleet has as many specifications as processes."""
    config = kind.__struct_config__
    return (
        {} if config.tag is None else {str(config.tag_field): config.tag},
        tuple(
            (
                one.name,
                one.encode_name,
                one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory(),
            )
            for one in msgspec.structs.fields(kind)
        ),
    )
