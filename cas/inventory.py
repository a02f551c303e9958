"""What a release consists of, blob by blob, in every form in which it may travel.

A release names its inventory, an inventory names the manifests: so whoever trusts a release can check each piece of
each blob, and of each recorded patch, no matter who sends it. An inventory is a line that says what it is and one
msgpack map, with equal content written in one way only. Specified in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cas import manifest as manifests
from cas.digest import Digest
from cas.errors import ExchangeError
from cas.interface import ExchangeStore
from cas.manifest import PIECE_BYTES

MAX_INVENTORY_BYTES: Final = 256 << 20
MAX_ITEMS: Final = 1 << 20
MAX_FORMS: Final = 16
_LINE: Final = b"lowcloud inventory 1\n"

_Size = Annotated[int, Meta(ge=0, le=1 << 48)]


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Some bytes from which a blob can be had: its own, one zstd frame, or a patch of `delta`."""

    digest: Digest
    """Of these bytes."""
    size: _Size
    manifest: Digest | None = None
    """Of the manifest of these bytes; None where they are one piece."""
    encoding: Literal["plain", "zstd", "delta"] = "plain"
    base: Digest | None = None
    """What a patch needs; None for the other encodings."""


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A blob, and what it can be made from."""

    whole: Form
    """Its own bytes."""
    others: Annotated[tuple[Form, ...], Meta(max_length=MAX_FORMS)] = ()
    """Frames and patches."""


class Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ordered by the blobs' digests, each once."""

    items: Annotated[tuple[Item, ...], Meta(max_length=MAX_ITEMS)]

    def by_blob(self) -> dict[Digest, Item]:
        return {item.whole.digest: item for item in self.items}

    def manifests(self) -> tuple[Digest, ...]:
        """The manifests that it names, each once, sorted: the release needs them as it needs its blobs."""
        forms = (form for item in self.items for form in (item.whole, *item.others))
        return tuple(sorted({form.manifest for form in forms if form.manifest is not None}))


def take_inventory(store: ExchangeStore, blobs: Iterable[Digest]) -> Inventory:
    """The inventory of these blobs in the encodings that the store holds; the manifests are put into the store. Raises
    BlobMissing, BlobDamaged, StoreFull."""
    return Inventory(tuple(_item(store, blob) for blob in sorted(set(blobs))))


def _item(store: ExchangeStore, blob: Digest) -> Item:
    whole = _form(store, store.stream(blob))
    stat, encoded = store.encoded(blob)
    others: list[Form] = []
    if stat.encoding == "zstd":
        others.append(_form(store, encoded, encoding="zstd"))
    elif stat.encoding == "delta":
        others.append(_form(store, encoded, encoding="delta", base=stat.base))
    for kept in stat.patches:
        found = store.patch(blob, [kept.base])
        if found is not None and kept.base != stat.base and len(others) < MAX_FORMS:
            others.append(_form(store, [found[1]], encoding="delta", base=kept.base))
    return Item(whole=whole, others=tuple(others))


def _form(
    store: ExchangeStore,
    chunks: Iterable[bytes],
    *,
    encoding: Literal["plain", "zstd", "delta"] = "plain",
    base: Digest | None = None,
) -> Form:
    own = manifests.manifest_of(chunks)
    manifest = store.put(manifests.encode(own)).digest if own.size > PIECE_BYTES else None
    return Form(digest=own.digest, size=own.size, manifest=manifest, encoding=encoding, base=base)


def encode(inventory: Inventory) -> bytes:
    return _LINE + msgspec.msgpack.encode(inventory, order="deterministic")


def decode(data: bytes) -> Inventory:
    """Raises ExchangeError for what is no inventory, or contradicts itself."""
    if len(data) > MAX_INVENTORY_BYTES or not data.startswith(_LINE):
        raise ExchangeError("this is no inventory that this lowcloud can read")
    try:
        inventory = msgspec.msgpack.decode(data[len(_LINE) :], type=Inventory)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ExchangeError(f"this is no inventory: {error}") from error
    blobs = [item.whole.digest for item in inventory.items]
    if blobs != sorted(set(blobs)):
        raise ExchangeError("an inventory lists each blob once, in order")
    for item in inventory.items:
        if item.whole.encoding != "plain" or not all(_may_be(form, item.whole.digest) for form in item.others):
            raise ExchangeError(f"the inventory's forms of {item.whole.digest} contradict each other")
        if any((form.manifest is None) != (form.size <= PIECE_BYTES) for form in (item.whole, *item.others)):
            raise ExchangeError(f"the inventory of {item.whole.digest} lacks a manifest, or has one too many")
    return inventory


def _may_be(form: Form, blob: Digest) -> bool:
    if form.encoding == "delta":
        return form.base is not None and form.base != blob
    return form.encoding == "zstd" and form.base is None


def manifest_for(form: Form, read: manifests.Manifest | None) -> manifests.Manifest:
    """The manifest by which the pieces of a form are checked: the one that was read, which must be of these bytes, or
    for bytes of one piece the form itself. Raises ExchangeError."""
    if read is None:
        if form.manifest is not None:
            raise ExchangeError(f"the manifest of {form.digest} is needed to take in its pieces")
        return manifests.of_one_piece(form.digest, form.size)
    if (read.digest, read.size) != (form.digest, form.size):
        raise ExchangeError(f"a manifest of other bytes than {form.digest}")
    return read
