"""Sealed blobs: only the key opens them, and only as they were sealed."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.sealed import MAX_SECRET_BYTES, PAD_BYTES, SealedInvalid, head_of, public_bytes, seal, unseal

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
WHEN = 1790000000

GOLDEN = bytes.fromhex(
    "6c637365616c018f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f803bb16a00000000026462cc0a7a6cbdd5b67c9c"
    "b111a34d71932746f610c879156ec5974b66e8a5d2d1333279cda824836b7f676e0e50eb9dd9b8cc9138860faf92cdd2a746c5b3dade8e4cc42660"
    "393a06af889750be411cd879d6448927e6365bfbd4558ccea7aef1a05626169afb29ee4af77a680dc260dd7a60ec6b77a31d8d915e6ff0b7a1d0c9"
    "bedca04812b84d7d1b24618f2a9c2bbaea00275df638d1b89efd4bfad286b0dccaf426c87f402c79567c80e18073bfd9ba82ff7d9fa958c73f08a2"
    "1f94eba7767a5acd4f99e2ee55d26f46a508efaffca8165afc4b258ade57f5b5085df2c1d990bdadcd3aeb837d42390c4db86cfc716fcf0d2f65e8"
    "426d53cb9b206120b088684646748905a3bcde6b9cb01be4a3dedae7da550410dc57bd7bbbd87e452bb08d5b2a7540c327b18023367954889e8984"
)


def test_what_version_1_has_sealed_opens() -> None:
    assert unseal(GOLDEN, KEY) == b"hunter2"
    head = head_of(GOLDEN)
    assert (head.name, head.recipient, head.at_unix_s) == ("db", public_bytes(KEY), WHEN)
    assert GOLDEN[: len(head.info)] == head.info


def test_the_encryption_is_hpke_of_rfc_9180() -> None:
    """Opened here step by step as sections 4 and 5 of the RFC have it, with nothing of the library's HPKE."""
    head = head_of(GOLDEN)
    sealed = GOLDEN[len(head.info) :]
    encapsulated, text = sealed[:32], sealed[32:]
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"
    shared = KEY.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    prk = extract(b"", kem, b"eae_prk", shared)
    secret = expand(prk, kem, b"shared_secret", encapsulated + public_bytes(KEY), 32)
    context = b"\x00" + extract(b"", suite, b"psk_id_hash", b"") + extract(b"", suite, b"info_hash", head.info)
    prk = extract(secret, suite, b"secret", b"")
    key, nonce = expand(prk, suite, b"key", context, 32), expand(prk, suite, b"base_nonce", context, 12)
    padded = ChaCha20Poly1305(key).decrypt(nonce, text, b"")
    assert padded == (7).to_bytes(4, "little") + b"hunter2" + bytes(PAD_BYTES - 11)


def extract(salt: bytes, suite: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def expand(prk: bytes, suite: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return HKDFExpand(SHA256(), length, labeled).derive(prk)


@settings(max_examples=30)
@given(st.binary(max_size=600), st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True), st.integers(0, 2**63))
def test_what_is_sealed_opens_and_is_never_twice_the_same(value: bytes, name: str, when: int) -> None:
    one, other = (seal(value, name=name, recipient=public_bytes(KEY), at_unix_s=when) for _ in range(2))
    assert one != other
    assert len(one) == len(other)
    assert unseal(one, KEY) == unseal(other, KEY) == value
    assert head_of(one)[:3] == (name, public_bytes(KEY), when)


def test_lengths_that_differ_little_do_not_show() -> None:
    sizes = {len(seal(b"x" * n, name="db", recipient=public_bytes(KEY), at_unix_s=0)) for n in range(1, PAD_BYTES - 4)}
    assert len(sizes) == 1


@settings(max_examples=150)
@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_a_byte_that_changed_is_noticed(at: int, by: int) -> None:
    damaged = bytearray(GOLDEN)
    damaged[at] ^= by
    with pytest.raises(SealedInvalid) as caught:
        unseal(bytes(damaged), KEY)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 5, 6, 7, 40, 60, 90, len(GOLDEN) - 1])
def test_a_part_of_it_is_refused(length: int) -> None:
    with pytest.raises(SealedInvalid):
        unseal(GOLDEN[:length], KEY)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_make_a_reader_fail(data: bytes) -> None:
    for candidate in (data, GOLDEN[:7] + data, GOLDEN[:60] + data):
        with pytest.raises(SealedInvalid):
            unseal(candidate, KEY)


def test_another_key_does_not_open_it_and_is_told_so() -> None:
    with pytest.raises(SealedInvalid, match="sealed to another key than this host's"):
        unseal(GOLDEN, X25519PrivateKey.generate())
    with pytest.raises(SealedInvalid, match="format version 2"):
        unseal(GOLDEN.replace(b"lcseal\x01", b"lcseal\x02", 1), KEY)


@pytest.mark.parametrize(
    ("value", "name", "recipient"),
    [
        (b"x" * (MAX_SECRET_BYTES + 1), "db", public_bytes(KEY)),
        (b"x", "", public_bytes(KEY)),
        (b"x", "n" * 64, public_bytes(KEY)),
        (b"x", "db", b"short"),
        (b"x", "db", bytes(32)),
    ],
)
def test_what_cannot_be_sealed_is_refused(value: bytes, name: str, recipient: bytes) -> None:
    with pytest.raises(ValueError):
        seal(value, name=name, recipient=recipient, at_unix_s=0)


def test_the_largest_secret_opens() -> None:
    value = bytes(range(256)) * (MAX_SECRET_BYTES // 256)
    assert unseal(seal(value, name="db", recipient=public_bytes(KEY), at_unix_s=0), KEY) == value
