"""`lowcloud.lock`: what each file name of a definition stands for, written by `lowcloud resolve` and read in review.

    lowcloud-lock = 1

    [blob."build/web.wasm"]
    hash = "b3:…"
    size = 61234
    kind = "component"
    imports = [
        "wasi:cli/environment@0.2.0",
    ]
    base = "b3:…"

    [secret.db-password]
    fra1 = "b3:…"

One table for each name as the definition writes it, sorted, one import on a line: a rebuilt program is a diff of the
lines that differ. `base` is what the name stood for before: the blob that a delta is best made from. A secret has the
hash of what was sealed to each host. It is TOML, so that people and other programs can read it, and it holds nothing
(no time, no machine) that would make two runs over the same files differ.
"""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cas.digest import Digest
from deployer.cloud.files import write_file
from deployer.cloud.regular_file import NotReadable, open_regular
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.wording import toml_key, toml_text

LOCK_NAME: Final = "lowcloud.lock"
VERSION: Final = 1
MAX_LOCK_BYTES = 64 << 20
_MAGIC: Final = "lowcloud-lock"

_HEAD = """\
# What each name of the definition stands for. Written by `lowcloud resolve`; commit it, review it, do not edit it.
"""
_HINT = "write it anew with `lowcloud resolve`"


class Locked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"digest": "hash"}):
    """One blob."""

    digest: Digest
    size: Annotated[int, Meta(ge=0)]
    kind: Literal["core", "component", "file"]
    """A core module, a component, or bytes that are not run."""
    imports: tuple[str, ...] = ()
    """What a binary asks of its host."""
    base: Digest | None = None
    """What the name stood for before, which the next version's delta is best made from."""


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By name, as the definition writes it: a path, or a digest."""

    blob: dict[str, Locked] = {}
    secret: dict[str, dict[str, Digest]] = {}
    """By the secret's name and the host that can open it: the sealed blob."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"version": _MAGIC}):
    version: int
    blob: dict[str, Locked] = {}
    secret: dict[str, dict[str, Digest]] = {}


def lock_path(definition: Path, overlay: str | None = None) -> Path:
    """Where the lock of a definition file is; with an overlay it has one of its own, `shop.staging.lock`."""
    return definition.with_name(LOCK_NAME if overlay is None else f"{definition.stem}.{overlay}.lock")


def encode(lock: Lock) -> str:
    """The file's text, the same for the same lock."""
    entries = [_entry(name, one) for name, one in sorted(lock.blob.items())]
    entries += [_secret(name, sealed) for name, sealed in sorted(lock.secret.items())]
    return _HEAD + f"{_MAGIC} = {VERSION}\n" + "".join(entries)


def decode(text: str, path: Path) -> Lock:
    """Raises DefinitionInvalid."""
    try:
        document = tomllib.loads(text)
        version = document.get(_MAGIC)
        if version is None or (isinstance(version, int) and version != VERSION):
            shown = "no format version" if version is None else f"format version {str(version)[:20]}"
            raise DefinitionInvalid(
                [Problem(str(path), 1, 1, f"this lock file has {shown}; this program knows version {VERSION}", _HINT)]
            )
        file = msgspec.convert(document, _File)
        return Lock(file.blob, file.secret)
    except (ValueError, RecursionError) as error:
        # msgspec's ValidationError is a ValueError too.
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DefinitionInvalid([Problem(str(path), 0, 0, f"this is not a lock file: {message}", _HINT)]) from None


def read(path: Path) -> Lock | None:
    """The lock in a file; None where there is none. Raises DefinitionInvalid."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_LOCK_BYTES + 1)
    except NotReadable as reason:
        if reason.missing:
            return None
        raise DefinitionInvalid([Problem(str(path), 0, 0, str(reason))]) from None
    except OSError as error:
        raise DefinitionInvalid([Problem(str(path), 0, 0, f"cannot be read: {error.strerror}")]) from None
    if len(data) > MAX_LOCK_BYTES:
        raise DefinitionInvalid([Problem(str(path), 0, 0, f"is larger than {MAX_LOCK_BYTES >> 20} MiB", _HINT)])
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise DefinitionInvalid([Problem(str(path), 0, 0, "this is not UTF-8", _HINT)]) from None
    return decode(text, path)


def write(path: Path, lock: Lock) -> bool:
    """Write the file, whole or not at all; leave it alone where it says the same already. Whether it was written."""
    data = encode(lock).encode()
    with contextlib.suppress(NotReadable, OSError), open_regular(path) as file:
        if file.read(len(data) + 1) == data:
            return False
    write_file(path, data, mode=0o644)
    return True


def _entry(name: str, one: Locked) -> str:
    lines = [
        f"\n[blob.{toml_text(name)}]",
        f"hash = {toml_text(one.digest)}",
        f"size = {one.size}",
        f"kind = {toml_text(one.kind)}",
    ]
    if one.imports:
        lines += ["imports = [", *(f"    {toml_text(interface)}," for interface in one.imports), "]"]
    if one.base is not None:
        lines.append(f"base = {toml_text(one.base)}")
    return "\n".join(lines) + "\n"


def _secret(name: str, sealed: dict[str, Digest]) -> str:
    lines = [f"{toml_key(host)} = {toml_text(digest)}" for host, digest in sorted(sealed.items())]
    return "\n".join([f"\n[secret.{toml_key(name)}]", *lines]) + "\n"
