"""The canonical form of a definition: the bytes whose digest is the version.

    {"definition":{...every field of the schema...},"lowcloud-definition":1}

JSON without spaces, in UTF-8, keys sorted by code point, every default written out, sizes in bytes, durations in
milliseconds, cores in thousandths, and every file as a digest. A field that came later (`later` in the schema) is left
out where it has its default, so that a definition of before has the digest of before. Two files that mean the same have
the same bytes; text that is the same JSON in another spelling is refused, so that a definition has one version and a
version one definition. The number is the format's version: a reader refuses those it does not know.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec

from cas.digest import Digest, digest_of, is_digest
from deployer.errors import DeployerError
from deployer.language.fields import Shape, fields_of
from deployer.language.schema import Definition, Table

MAGIC: Final = "lowcloud-definition"
VERSION: Final = 1
MAX_CANONICAL_BYTES = 64 << 20


class CanonicalInvalid(DeployerError):
    """Bytes that are not a definition's canonical form."""

    hint = "`lowcloud check` verifies the store; a definition of a newer format needs a newer lowcloud"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"version": MAGIC}):
    version: int
    definition: Definition


class _Header(msgspec.Struct, frozen=True, rename={"version": MAGIC}):
    version: int


def encode(definition: Definition) -> bytes:
    """Raises CanonicalInvalid where a file name has not been resolved to a digest."""
    for where, reference in references(definition):
        if not is_digest(reference):
            raise CanonicalInvalid(f"{where} is the file name {reference!r}, not a digest", hint="resolve it first")
    return _form(definition)


def version_of(definition: Definition) -> Digest:
    """The digest of the canonical form."""
    return digest_of(encode(definition))


def decode(data: bytes) -> Definition:
    """Raises CanonicalInvalid. What comes back has the schema's types and limits; that its tables fit together was
    checked when it was written, and is not asked again, so that an old version stays readable when checks change."""
    if len(data) > MAX_CANONICAL_BYTES:
        raise CanonicalInvalid(f"a definition of {len(data)} bytes is larger than the {MAX_CANONICAL_BYTES} allowed")
    try:
        version = msgspec.json.decode(data, type=_Header).version
    except (msgspec.DecodeError, RecursionError) as error:
        raise CanonicalInvalid(f"this is not a definition: {error}") from None
    if version != VERSION:
        raise CanonicalInvalid(f"this definition has format version {version}; this program knows version {VERSION}")
    try:
        definition = msgspec.json.decode(data, type=_File).definition
        canonical = _form(definition) == data
    except (msgspec.DecodeError, RecursionError) as error:
        raise CanonicalInvalid(f"this is not a definition: {error}") from None
    if not canonical:
        raise CanonicalInvalid("this definition is not in its canonical form")
    for where, reference in references(definition):
        if not is_digest(reference):
            raise CanonicalInvalid(f"{where} is not a digest")
    return definition


def references(definition: Definition) -> list[tuple[str, str]]:
    """Every reference to a blob, with its place: `process.web.binary`, `process.web.config./etc/web.toml`,
    `secret.db.sealed.fra1`. In the canonical form each is a digest."""
    found = []
    for name, process in sorted(definition.process.items()):
        found.append((f"process.{name}.binary", process.binary))
        found += [(f"process.{name}.config.{path}", reference) for path, reference in sorted(process.config.items())]
    for name, secret in sorted(definition.secret.items()):
        found += [(f"secret.{name}.sealed.{host}", reference) for host, reference in sorted(secret.sealed.items())]
    return found


def blobs_of(definition: Definition) -> list[Digest]:
    """Every blob that a resolved definition needs, each once, sorted."""
    return sorted({reference for _, reference in references(definition)})


def _form(definition: Definition) -> bytes:
    tree = msgspec.to_builtins(definition)
    _leave_out(tree, Definition)
    return msgspec.json.encode({"definition": tree, MAGIC: VERSION}, order="sorted")


def _leave_out(tree: dict[str, Any], table: type[Table]) -> None:
    """Take the later fields away that have their default."""
    for field in fields_of(table).values():
        if field.later and tree[field.name] == field.default:
            del tree[field.name]
        elif field.shape is Shape.TABLES and _has_later(field.table):
            for below in tree[field.name].values():
                _leave_out(below, field.table)
        elif field.shape is Shape.TABLE and tree[field.name] is not None and _has_later(field.table):
            _leave_out(tree[field.name], field.table)


@functools.cache
def _has_later(table: type[Table]) -> bool:
    fields = fields_of(table).values()
    below = (field.table for field in fields if field.shape in (Shape.TABLE, Shape.TABLES))
    return any(field.later for field in fields) or any(_has_later(one) for one in below)
