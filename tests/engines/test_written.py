"""What is written for engines, read strictly: a ref at etcd, and the addresses of refs and of blobs."""

from __future__ import annotations

import pytest

from cas.engines.address import Endpoint, EtcdAddress, parse_blobs, parse_refs
from cas.engines.errors import EngineAddressInvalid
from cas.engines.etcd_refs import RefValue, decode, encode
from cas.errors import StoreUnreadable
from tests.engines.support import A


def test_a_ref_is_json_with_the_tokens_of_its_last_moves() -> None:
    value = RefValue(to=A, moves=("0123456789abcdef",))
    written = (
        b'{"lowcloud-ref":1,"to":"b3:17762fddd969a453925d65717ac3eea21320b66b54342fde15128d6caf21215f",'
        b'"moves":["0123456789abcdef"],"moved-to":null}'
    )
    assert encode(value) == written
    assert decode("prod", written) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"{}",
        b'{"to":"b3:12","moves":[]}',
        b'{"to":null,"moves":["x"]}',
        b'{"lowcloud-ref":2,"to":null,"moves":[]}',
        b'{"to":null,"moves":[],"more":1}',
        b'{"to":null,"moves":[' + b",".join([b'"0123456789abcdef"'] * 33) + b"]}",
    ],
)
def test_what_is_no_ref_of_a_known_version_is_refused(data: bytes) -> None:
    with pytest.raises(StoreUnreadable, match="prod"):
        decode("prod", data)


def test_an_address_names_endpoints_and_the_cloud() -> None:
    found = parse_refs("etcds://10.0.0.1:2379,etcd.example:4,[::1]:2379/shop/eu")
    assert found == EtcdAddress(
        (Endpoint("10.0.0.1", 2379), Endpoint("etcd.example", 4), Endpoint("::1", 2379)), "shop/eu", tls=True
    )
    assert parse_refs("lmdb") is None
    blobs = parse_blobs("s3://bucket/some/prefix?endpoint=http://10.0.0.5:8333&region=eu-1")
    assert blobs == ("bucket", "some/prefix", "http://10.0.0.5:8333", "eu-1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "etcd",
        "etcd://",
        "etcd:///shop",
        "etcd://h:1",
        "etcd://h:1/",
        "etcd://h/shop",
        "etcd://h:0/shop",
        "etcd://h:70000/shop",
        "etcd://u:p@h:1/shop",
        "etcd://h:1/../shop",
        "etcd://h:1,/shop",
        "http://h:1/shop",
    ],
)
def test_an_address_of_refs_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(EngineAddressInvalid):
        parse_refs(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3",
        "s3://",
        "s3:///prefix",
        "s3://B/p",
        "s3://bucket/../p",
        "s3://key:secret@bucket/p",
        "http://bucket/p",
        "s3://bucket/p?secret=x",
        "s3://bucket/p?endpoint=ftp://x",
        "s3://bucket/p#x",
        "s3://bucket/p?endpoint",
    ],
)
def test_an_address_of_blobs_that_makes_no_sense_or_holds_a_secret_is_refused(text: str) -> None:
    with pytest.raises(EngineAddressInvalid):
        parse_blobs(text)
