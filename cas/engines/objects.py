"""Objects in an S3 store, through `obstore`: a dozen calls with deadlines, and errors that say what happened.

Credentials come from where every S3 program finds them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN);
AWS_ENDPOINT_URL and AWS_REGION say where the store is, unless the cloud's own line does. `obstore` tries again what may
be tried again: every call here has the same effect when it is made twice.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cas.engines.address import S3Address
from cas.engines.errors import EngineRefused, EngineUnreachable

if TYPE_CHECKING:
    from obstore.store import S3Store

CONNECT_S: Final = 3
REQUEST_S: Final = 60
RETRIES: Final = 4
RETRY_S: Final = 15
PIECE_BYTES: Final = 1 << 20
DELETE_AT_ONCE: Final = 500
METADATA_SERVICE: Final = "/latest/api/token"
"""What `obstore` asks for credentials when the environment has none; on Amazon's own machines somebody answers."""
DEFAULT_REGION: Final = "us-east-1"


_TIMING: Final = re.compile(r" in [0-9.]+(?:ms|µs|s)(?:, after [0-9]+ retries[^-]*)?\s+- ")


class Meta(NamedTuple):
    path: str
    size: int
    modified_unix_s: float
    """By the store's own clock."""
    e_tag: str | None


class Objects:
    """The objects under one prefix. Paths are relative to it. Any thread may call anything."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store = store
        self.name = name
        """For messages."""

    @classmethod
    def open(cls, address: S3Address, *, environ: Mapping[str, str] = os.environ, retries: int = RETRIES) -> Objects:
        """Connects when it is first used. Raises EngineRefused where the settings make no sense."""
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        endpoint = address.endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        region = address.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
        options: dict[str, Any] = {"region": region, "prefix": address.prefix or None}
        if endpoint:
            options["endpoint"] = endpoint
        try:
            store = S3Store(
                address.bucket,
                client_options={
                    "allow_http": bool(endpoint and endpoint.startswith("http:")),
                    "connect_timeout": f"{CONNECT_S}s",
                    "timeout": f"{REQUEST_S}s",
                },
                retry_config={"max_retries": retries, "retry_timeout": datetime.timedelta(seconds=RETRY_S)},
                **options,
            )
        except (BaseError, ValueError) as error:
            raise EngineRefused(f"the S3 store of bucket {address.bucket!r} cannot be used: {_first(error)}") from error
        return cls(store, f"s3://{address.bucket}/{address.prefix}".rstrip("/"))

    # --- reading ---

    def head(self, path: str) -> Meta | None:
        """None where there is no such object."""
        import obstore

        with self._asking():
            try:
                return _meta(obstore.head(self._store, path))
            except FileNotFoundError:
                return None

    def start(self, path: str, size: int) -> tuple[Meta, bytes] | None:
        """The first bytes of an object; None where there is none."""
        import obstore

        with self._asking():
            try:
                found = obstore.get(self._store, path, options={"range": (0, size)})
                return _meta(found.meta), bytes(found.bytes())
            except FileNotFoundError:
                return None

    def get(self, path: str) -> tuple[Meta, Iterator[bytes]] | None:
        """An object in pieces; None where there is none. The pieces raise as this does."""
        import obstore

        with self._asking():
            try:
                found = obstore.get(self._store, path)
            except FileNotFoundError:
                return None
            return _meta(found.meta), self._pieces(found)

    def _pieces(self, found: Any) -> Iterator[bytes]:
        with self._asking():
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def list(self, folder: str, *, after: str = "") -> Iterator[Meta]:
        """The objects in a folder, in the order of their names, from behind `after` (a name in it)."""
        import obstore

        offset = f"{folder}/{after}" if after else None
        with self._asking():
            for batch in obstore.list(self._store, folder, offset=offset):
                yield from map(_meta, batch)

    # --- writing: durable when it returns ---

    def create(self, path: str, data: bytes) -> bool:
        """Whether the object is new; one that is there is left as it is. After an attempt whose answer was lost, an
        object of our own counts as having been there."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._asking():
            try:
                obstore.put(self._store, path, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def put(self, path: str, data: bytes | Iterable[bytes], *, part_bytes: int = 8 << 20) -> None:
        """Write or replace an object, seen by readers whole or not at all. Pieces are uploaded in parts."""
        import obstore

        with self._asking():
            if isinstance(data, bytes):
                obstore.put(self._store, path, data, use_multipart=False)
            else:
                obstore.put(self._store, path, iter(data), chunk_size=part_bytes, max_concurrency=4)

    def replace(self, path: str, data: bytes, e_tag: str | None) -> bool:
        """Replace an object if it is still the one with this tag."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._asking():
            try:
                obstore.put(self._store, path, data, mode={"e_tag": e_tag})
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def delete(self, paths: Sequence[str]) -> None:
        """What is not there counts as deleted."""
        import obstore

        with self._asking():
            for start in range(0, len(paths), DELETE_AT_ONCE):
                obstore.delete(self._store, list(paths[start : start + DELETE_AT_ONCE]))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused(error) from error
        except (BaseError, OSError) as error:
            said = _first(error)
            if METADATA_SERVICE in said:
                raise EngineRefused(
                    f"there are no credentials for the S3 store {self.name}",
                    hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role at Amazon",
                ) from error
            if any(sign in said for sign in ("403 Forbidden", "401 Unauthorized", "NoSuchBucket", "404 Not Found")):
                raise self._refused(error) from error
            raise EngineUnreachable(f"the S3 store {self.name} gave no answer: {said}") from error

    def _refused(self, error: Exception) -> EngineRefused:
        return EngineRefused(
            f"the S3 store {self.name} refused: {_first(error)}",
            hint="check the bucket, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they permit",
        )


def side_by_side(work: Callable[[Any], Any], items: Sequence[Any], *, at_once: int = 16) -> list[Any]:
    """The results in the order of the items. After an error nothing new begins, and it is raised."""
    if len(items) <= 1:
        return [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(at_once, len(items))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _meta(found: Any) -> Meta:
    return Meta(found["path"], int(found["size"]), found["last_modified"].timestamp(), found["e_tag"])


def _first(error: BaseException) -> str:
    """What matters of `obstore`'s messages, which go on for pages, on one line."""
    said = str(error).split("\n\nDebug source:", 1)[0].removeprefix("Generic S3 error: ")
    return " ".join(_TIMING.sub(": ", said).split())[:300]
