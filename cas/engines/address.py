"""Where an engine is, as one line of `lowcloud.toml` says it. No secret is ever part of it.

lmdb                                                 the store in `.lowcloud/`, the default
etcd://10.0.0.1:2379,10.0.0.2:2379/shop              refs, under the key prefix /shop/
etcds://…                                            the same over TLS (ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY)
s3://bucket/prefix                                   blobs (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, …)
s3://bucket/prefix?endpoint=http://10.0.0.5:8333&region=eu-1
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from cas.engines.errors import EngineAddressInvalid

LOCAL: Final = "lmdb"
MAX_ENDPOINTS: Final = 16
MAX_ADDRESS_CHARS: Final = 2048

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,7}")
_HOST = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Endpoint(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class EtcdAddress(NamedTuple):
    endpoints: tuple[Endpoint, ...]
    name: str
    """What the cloud is called there: all its keys begin with `/NAME/`."""
    tls: bool


class S3Address(NamedTuple):
    bucket: str
    prefix: str
    endpoint: str | None
    """None: AWS_ENDPOINT_URL, or Amazon's own."""
    region: str | None


def parse_refs(text: str) -> EtcdAddress | None:
    """Where refs are; None for `lmdb`. Raises EngineAddressInvalid."""
    if text == LOCAL:
        return None
    scheme, separator, rest = text.partition("://")
    if scheme not in ("etcd", "etcds") or not separator or len(text) > MAX_ADDRESS_CHARS:
        raise EngineAddressInvalid(f"{text!r} is no place for refs")
    hosts, _, name = rest.partition("/")
    if not _NAME.fullmatch(name):
        raise EngineAddressInvalid(f"{text!r} does not say what the cloud is called in etcd: etcd://HOST:PORT/NAME")
    endpoints = tuple(dict.fromkeys(_endpoint(host, text) for host in hosts.split(",")))
    if len(endpoints) > MAX_ENDPOINTS:
        raise EngineAddressInvalid(f"{text!r} names more than {MAX_ENDPOINTS} endpoints")
    return EtcdAddress(endpoints, name, scheme == "etcds")


def parse_blobs(text: str) -> S3Address | None:
    """Where the shared origin of blobs is; None for `lmdb`. Raises EngineAddressInvalid."""
    if text == LOCAL:
        return None
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise EngineAddressInvalid(f"{text!r} is no place for blobs: {error}") from error
    if parts.scheme != "s3" or len(text) > MAX_ADDRESS_CHARS:
        raise EngineAddressInvalid(f"{text!r} is no place for blobs")
    if "@" in parts.netloc:
        raise EngineAddressInvalid(
            "a key has no place in lowcloud.toml", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise EngineAddressInvalid(f"{text!r} names no bucket: s3://BUCKET/PREFIX")
    prefix = parts.path.strip("/")
    if prefix and not _NAME.fullmatch(prefix):
        raise EngineAddressInvalid(f"{prefix!r} cannot be a prefix: letters, digits, '.', '_', '-' and '/'")
    unknown = sorted(set(options) - {"endpoint", "region"})
    if unknown or parts.fragment:
        raise EngineAddressInvalid(f"{text!r} has options that are not known: only endpoint and region are")
    endpoint = options.get("endpoint")
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise EngineAddressInvalid(f"{endpoint!r} is no endpoint: http://HOST:PORT or https://HOST")
    return S3Address(parts.netloc, prefix, endpoint, options.get("region"))


def _endpoint(text: str, whole: str) -> Endpoint:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise EngineAddressInvalid(f"{text!r} in {whole!r} is no HOST:PORT")
    return Endpoint(match["host"].strip("[]"), int(match["port"]))
