"""etcd 3.4 or newer through its JSON gateway: three calls (range, txn, watch), several endpoints, deadlines.

The gateway's rules (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/): keys and values are base64, 64-bit numbers
are texts, and what has its zero value is left out, so the `mod_revision` of a key that is not there is "0".

**Failing over.** An endpoint that cannot be connected to is passed over. One that was asked and gave no answer, or an
error of the cluster (no leader, timed out), may have done what it was asked; that only `EngineUnreachable.maybe_done`
of the last word tells, and whoever writes must know how to ask again safely (`etcd_refs`). A round in which no endpoint
could be connected to ends the call at once: waiting would not help a person.

Standard library only: refs are read by commands that must start fast, from any thread, one small request at a time. A
connection is used once; a request costs a TCP handshake more, and no call is ever lost to a stale connection.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cas.engines.address import Endpoint, EtcdAddress
from cas.engines.errors import EngineRefused, EngineUnreachable

if TYPE_CHECKING:
    import ssl

CONNECT_S: Final = 2.0
ATTEMPT_S: Final = 3.0
"""How long one endpoint is waited for: longer than an election takes (1 to 1.5 s), shorter than etcd's own patience."""
PAUSE_S: Final = 0.1
"""Between two rounds over all endpoints."""
MAX_ANSWER_BYTES: Final = 16 << 20
MAX_EVENT_BYTES: Final = 4 << 20
_READ_BYTES: Final = 64 << 10


class KeyValue(NamedTuple):
    key: bytes
    value: bytes
    mod_revision: int
    create_revision: int
    version: int
    """How often the key was written since it was created."""


class Range(NamedTuple):
    revision: int
    """The store's revision when this was read."""
    found: list[KeyValue]


class Swap(NamedTuple):
    succeeded: bool
    now: KeyValue | None
    """Where it failed: what is there instead."""


class Unanswered(EngineUnreachable):
    """No endpoint gave an answer."""

    def __init__(self, message: str, *, maybe_done: bool) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class _NotConnected(Exception):
    """Nothing was sent."""


class _NoAnswer(Exception):
    """Something was sent."""


class EtcdClient:
    """Any thread may call anything."""

    def __init__(
        self,
        address: EtcdAddress,
        *,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        attempt_s: float = ATTEMPT_S,
    ) -> None:
        """With TLS, ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY of `environ` name files, as for etcdctl. Raises
        EngineRefused where they cannot be used."""
        self._endpoints = list(address.endpoints)
        self._tls = _tls_context(environ) if address.tls else None
        self._monotonic = monotonic
        self._pause = pause
        self._attempt_s = attempt_s

    # --- the three calls ---

    def range(self, key: bytes, *, prefix: bool = False, deadline_s: float) -> Range:
        """Keys as a majority of the cluster has them now. Raises EngineUnreachable, EngineRefused."""
        body: dict[str, Any] = {"key": _b64(key)}
        if prefix:
            body["range_end"] = _b64(_after_prefix(key))
        answer = self._call("/v3/kv/range", body, deadline_s)
        with _sound_answer():
            return Range(int(answer["header"].get("revision", "0")), [_key_value(kv) for kv in answer.get("kvs", [])])

    def swap(self, key: bytes, mod_revision: int, value: bytes, *, deadline_s: float) -> Swap:
        """Write a key if its last write is still `mod_revision` (0: it is not there). Asked again after a lost answer,
        so the failure may be that an earlier attempt has succeeded. Raises Unanswered, EngineRefused."""
        coded = _b64(key)
        compare = {"target": "MOD", "result": "EQUAL", "key": coded, "mod_revision": str(mod_revision)}
        body = {
            "compare": [compare],
            "success": [{"request_put": {"key": coded, "value": _b64(value)}}],
            "failure": [{"request_range": {"key": coded}}],
        }
        answer = self._call("/v3/kv/txn", body, deadline_s)
        if answer.get("succeeded", False):
            return Swap(True, None)
        with _sound_answer():
            found = answer["responses"][0]["response_range"].get("kvs", [])
            return Swap(False, _key_value(found[0]) if found else None)

    def watch(self, key: bytes, *, after_revision: int, idle_s: float) -> Iterator[KeyValue]:
        """What is written to a key after a revision, as it happens. Ends when nothing has come for `idle_s`, when the
        connection is lost or the revision is no longer kept: then read the key, and watch on from there."""
        body = {"create_request": {"key": _b64(key), "start_revision": str(after_revision + 1)}}
        for endpoint in self._endpoints:
            try:
                connection = self._connected(endpoint, CONNECT_S)
            except _NotConnected:
                continue
            try:
                connection.sock.settimeout(idle_s)
                connection.request("POST", "/v3/watch", json.dumps(body))
                yield from _events(connection.getresponse())
            except (OSError, http.client.HTTPException):
                return
            finally:
                connection.close()
            return

    # --- asking ---

    def _call(self, path: str, body: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
        payload = json.dumps(body).encode()
        ends = self._monotonic() + deadline_s
        maybe_done = False
        reasons: dict[Endpoint, str] = {}
        while True:
            connected = False
            for endpoint in tuple(self._endpoints):
                left_s = ends - self._monotonic()
                if left_s <= 0:
                    break
                try:
                    return self._ask(endpoint, path, payload, min(left_s, self._attempt_s))
                except _NotConnected as error:
                    reasons[endpoint] = str(error)
                except _NoAnswer as error:
                    reasons[endpoint] = str(error)
                    connected = maybe_done = True
                self._put_last(endpoint)
            if not connected or self._monotonic() >= ends:
                said = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in reasons.items())
                raise Unanswered(f"etcd gave no answer ({said})", maybe_done=maybe_done)
            self._pause(PAUSE_S)

    def _ask(self, endpoint: Endpoint, path: str, payload: bytes, timeout_s: float) -> dict[str, Any]:
        connection = self._connected(endpoint, min(timeout_s, CONNECT_S))
        try:
            sock = connection.sock  # which it gives up where the answer is the last one
            sock.settimeout(timeout_s)
            connection.request("POST", path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = _bounded(response, sock, self._monotonic() + timeout_s, self._monotonic)
        except (OSError, http.client.HTTPException) as error:
            raise _NoAnswer(_why(error)) from error
        finally:
            connection.close()
        return _answer(endpoint, response.status, data)

    def _connected(self, endpoint: Endpoint, timeout_s: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(*endpoint, timeout=timeout_s, context=self._tls)
        else:
            connection = http.client.HTTPConnection(*endpoint, timeout=timeout_s)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _NotConnected(_why(error)) from error
        return connection

    def _put_last(self, endpoint: Endpoint) -> None:
        """The next call begins with one that may be better."""
        if endpoint in self._endpoints and len(self._endpoints) > 1:
            self._endpoints = [other for other in self._endpoints if other != endpoint] + [endpoint]


# --- what it says ---------------------------------------------------------------------------------------------------


def _answer(endpoint: Endpoint, status: int, data: bytes) -> dict[str, Any]:
    if status == http.client.OK:
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise _NoAnswer("what it says is not JSON") from error
        if not isinstance(answer, dict) or "header" not in answer:
            raise _NoAnswer("what it says is not etcd's")
        return answer
    said = _error_text(data)
    if status in (http.client.INTERNAL_SERVER_ERROR, http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE):
        raise _NoAnswer(said)
    if status == http.client.GATEWAY_TIMEOUT:
        raise _NoAnswer(said)
    if status == http.client.NOT_FOUND:
        raise EngineRefused(f"{endpoint} has no etcd gateway of version 3", hint="etcd 3.4 or newer is needed")
    raise EngineRefused(f"etcd at {endpoint} refused ({status}): {said}", hint="look at etcd's own log")


def _error_text(data: bytes) -> str:
    try:
        said = json.loads(data)
        return str(said["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace").strip()


def _bounded(
    response: http.client.HTTPResponse, sock: socket.socket, ends: float, monotonic: Callable[[], float]
) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read(_READ_BYTES):
        size += len(part)
        parts.append(part)
        left_s = ends - monotonic()
        if size > MAX_ANSWER_BYTES or left_s <= 0:
            raise http.client.HTTPException("an answer that does not end")
        if sock.fileno() >= 0:
            sock.settimeout(left_s)
    return b"".join(parts)


def _events(response: http.client.HTTPResponse) -> Iterator[KeyValue]:
    while line := response.readline(MAX_EVENT_BYTES):
        try:
            result = json.loads(line)["result"]
        except (ValueError, KeyError, TypeError):
            return  # the connection was cut in the middle of a line, or an error: reading the key will tell
        if result.get("canceled") or int(result.get("compact_revision", 0)):
            return
        for event in result.get("events", []):
            if event.get("type", "PUT") == "PUT":
                yield _key_value(event["kv"])


def _key_value(kv: Mapping[str, str]) -> KeyValue:
    return KeyValue(
        base64.b64decode(kv["key"]),
        base64.b64decode(kv.get("value", "")),
        int(kv.get("mod_revision", "0")),
        int(kv.get("create_revision", "0")),
        int(kv.get("version", "0")),
    )


@contextmanager
def _sound_answer() -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineRefused("an answer of etcd is not what its interface says", hint="is it etcd?") from error


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _after_prefix(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix` (which ends in a byte below 0xFF)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    authority, certificate, key = (environ.get(f"ETCDCTL_{name}") or None for name in ("CACERT", "CERT", "KEY"))
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise EngineRefused(
            f"the certificates for etcd cannot be used: {error}",
            hint="ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY name PEM files",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
