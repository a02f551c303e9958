"""Manifests and inventories: what they are made of, and that nobody can pass off others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import inventory, manifest
from cas.digest import digest_of
from cas.errors import ExchangeError
from cas.inventory import Form, Inventory, Item, take_inventory
from cas.manifest import PIECE_BYTES, Manifest, manifest_of
from cas.store import Store

SIZES = st.sampled_from([0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])


def cut(data: bytes, step: int) -> Iterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


def text(size: int, seed: bytes = b"") -> bytes:
    return blake3(seed).digest(length=size)


@settings(max_examples=30)
@given(SIZES, st.sampled_from([1000, 70_001, PIECE_BYTES, 1 << 20]))
def test_a_manifest_does_not_depend_on_how_the_bytes_came(size: int, step: int) -> None:
    data = text(size)
    made = manifest_of(cut(data, step))
    assert (made.size, made.digest) == (size, digest_of(data))
    assert made == manifest_of([data]) == manifest.decode(manifest.encode(made))
    pieces = list(cut(data, PIECE_BYTES))
    assert len(pieces) == len(made.pieces) == manifest.pieces_in(size)
    assert all(made.fits(index, piece) for index, piece in enumerate(pieces))


def test_a_wrong_byte_a_short_piece_and_a_piece_in_another_place_do_not_fit() -> None:
    data = text(2 * PIECE_BYTES + 5)
    made = manifest_of([data])
    first, second = data[:PIECE_BYTES], data[PIECE_BYTES : 2 * PIECE_BYTES]
    assert not made.fits(0, second)
    assert not made.fits(0, first[:-1])
    assert not made.fits(0, first[:100] + bytes([first[100] ^ 1]) + first[101:])
    assert not made.fits(2, first)


def test_bytes_of_one_piece_need_no_manifest() -> None:
    for data in (b"", b"x", text(PIECE_BYTES)):
        assert manifest.of_one_piece(digest_of(data), len(data)) == manifest_of([data])
    with pytest.raises(ValueError, match="more than one piece"):
        manifest.of_one_piece(digest_of(b""), PIECE_BYTES + 1)


@settings(max_examples=100)
@given(st.integers(0, 80), st.integers(0, 255), st.binary(max_size=40))
def test_what_is_no_manifest_is_refused(at: int, flip: int, tail: bytes) -> None:
    sound = manifest.encode(manifest_of([text(PIECE_BYTES + 1)]))
    twisted = bytearray(sound)
    twisted[at] ^= flip
    for data in (bytes(twisted), sound + tail, sound[:at], tail):
        try:
            assert manifest.encode(manifest.decode(data)) == data
        except ExchangeError:
            continue


def test_the_bytes_of_a_manifest_are_as_specified() -> None:
    data = bytes(PIECE_BYTES) + b"end"
    assert manifest.encode(manifest_of([data])).hex() == (
        "6c636d66" + "0100" + "0300040000000000" + blake3(data).hexdigest()
        + blake3(bytes(PIECE_BYTES)).hexdigest() + blake3(b"end").hexdigest()
    )  # fmt: skip


def test_an_inventory_names_manifests_and_stored_patches_and_says_the_same_twice(tmp_path: Path) -> None:
    first = text(2 * PIECE_BYTES)
    second = first[:1000] + b"changed" + first[1000:]
    with Store.open(tmp_path / "store") as store:
        blobs = [store.put(data, name="big").digest for data in (first, second)] + [store.put(b"small").digest]
        taken = take_inventory(store, blobs)
        assert taken == take_inventory(store, reversed(blobs))
        items = taken.by_blob()
        assert sorted(items) == sorted(blobs)
        assert items[blobs[2]] == Item(whole=Form(digest=blobs[2], size=5))
        own = manifest.decode(store.read(items[blobs[1]].whole.manifest or ""))
        assert own == manifest_of([second])
        (patch,) = items[blobs[1]].others
        found = store.patch(blobs[1], [blobs[0]])
        assert found is not None
        assert patch == Form(digest=digest_of(found[1]), size=len(found[1]), encoding="delta", base=blobs[0])
        assert store.missing(taken.manifests()) == []
        assert inventory.decode(inventory.encode(taken)) == taken


SMALL = Form(digest=digest_of(b"small"), size=5)
LARGE = Form(digest=digest_of(b"large"), size=PIECE_BYTES + 1, manifest=digest_of(b"manifest"))


@pytest.mark.parametrize(
    "items",
    [
        (Item(whole=SMALL), Item(whole=SMALL)),
        (Item(whole=Form(digest=SMALL.digest, size=5, encoding="delta", base=LARGE.digest)),),
        (Item(whole=SMALL, others=(LARGE,)),),
        (Item(whole=SMALL, others=(Form(digest=LARGE.digest, size=9, encoding="delta"),)),),
        (Item(whole=SMALL, others=(Form(digest=LARGE.digest, size=9, encoding="delta", base=SMALL.digest),)),),
        (Item(whole=SMALL, others=(Form(digest=LARGE.digest, size=9, encoding="zstd", base=LARGE.digest),)),),
        (Item(whole=Form(digest=SMALL.digest, size=PIECE_BYTES + 1)),),
        (Item(whole=Form(digest=SMALL.digest, size=5, manifest=LARGE.digest)),),
    ],
)
def test_an_inventory_that_contradicts_itself_is_refused(items: tuple[Item, ...]) -> None:
    with pytest.raises(ExchangeError):
        inventory.decode(inventory.encode(Inventory(items)))


def test_a_manifest_of_other_bytes_is_not_taken_for_a_form() -> None:
    other = Manifest(LARGE.size, digest_of(b"other"), (bytes(32), bytes(32)))
    with pytest.raises(ExchangeError, match="other bytes"):
        inventory.manifest_for(LARGE, other)
    with pytest.raises(ExchangeError, match="is needed"):
        inventory.manifest_for(LARGE, None)
    assert inventory.manifest_for(SMALL, None).pieces == (blake3(b"small").digest(),)


def test_the_bytes_of_an_inventory_are_as_specified() -> None:
    data = inventory.encode(Inventory((Item(whole=SMALL),)))
    assert data.startswith(b"lowcloud inventory 1\n")
    assert data[21:].hex() == "81a56974656d739181a577686f6c6582a6646967657374d943" + SMALL.digest.encode().hex() + (
        "a473697a6505"
    )
