"""A second operator of a cloud: one file with a key, a certificate and the settings, carried to another machine.

Who has the certificate authority makes it (`lowcloud operator add`); the other machine opens it into a new directory
(`lowcloud operator enroll`), which then is a cloud like any other, without the authority: it can plan, apply, roll back
and read the history, and cannot admit hosts or operators. It is of use where history and blobs are shared.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from deployer.cloud import trust
from deployer.cloud.cloud import CONFIG_NAME, MAX_CONFIG_BYTES, STATE_NAME, Cloud, parse_config
from deployer.cloud.files import read_file, sync_directory, write_file
from deployer.cloud.trust import MAX_BUNDLE_BYTES, MAX_PEM_BYTES, PartyName
from deployer.errors import BundleInvalid, CloudExists

OPERATOR_PARTS: Final = "ca.pem", "cert.pem", "key.pem"


class OperatorBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that is carried (JSON, 0600). It holds the operator's private key: delete it once opened."""

    operator: PartyName
    config: Annotated[str, Meta(max_length=MAX_CONFIG_BYTES)]
    """The cloud's `lowcloud.toml`."""
    ca: Annotated[str, Meta(max_length=MAX_PEM_BYTES)]
    cert: Annotated[str, Meta(max_length=MAX_PEM_BYTES)]
    key: Annotated[str, Meta(max_length=MAX_PEM_BYTES)]
    format: Literal["lowcloud-operator-bundle"] = "lowcloud-operator-bundle"
    version: Literal[1] = 1


class _AsWritten(msgspec.Struct, frozen=True):
    """What a reader asks first: a file without these two is no bundle."""

    format: Literal["lowcloud-operator-bundle"]
    version: Literal[1]


def operator_bundle(cloud: Cloud, name: str, to: Path) -> Path:
    """Make the bundle of a new operator (0600), which is returned. No copy of the private key is kept. Raises
    TrustError, BadInput."""
    with tempfile.TemporaryDirectory(dir=cloud.state) as issued:
        credentials = trust.issue_operator(cloud.authority, name, Path(issued) / "operator")
        ca, cert, key = ((credentials / part).read_text() for part in OPERATOR_PARTS)
    config = read_file(cloud.root / CONFIG_NAME, max_bytes=MAX_CONFIG_BYTES).decode()
    bundle = OperatorBundle(operator=name, config=config, ca=ca, cert=cert, key=key)
    write_file(to, msgspec.json.format(msgspec.json.encode(bundle), indent=1) + b"\n")
    return to


def enroll_operator(file: Path, root: Path, *, now: datetime.datetime | None = None) -> OperatorBundle:
    """Make a directory a cloud of the bundle's operator. Raises BundleInvalid where its parts do not belong together,
    CloudExists where the directory has a cloud already."""
    bundle = _read(file)
    _check(bundle, file, now or datetime.datetime.now(datetime.UTC))
    root = root.absolute()
    for name in (CONFIG_NAME, STATE_NAME):
        if (root / name).exists():
            raise CloudExists(root, name)
    parse_config(bundle.config, root / CONFIG_NAME)
    root.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{STATE_NAME}.new-", dir=root))
    try:
        _build(bundle, building)
        building.rename(root / STATE_NAME)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sync_directory(root)
    write_file(root / CONFIG_NAME, bundle.config.encode(), mode=0o644)
    return bundle


def _build(bundle: OperatorBundle, building: Path) -> None:
    from cas.store import Store

    credentials = building / "operator"
    for directory in (credentials, building / "hosts"):
        directory.mkdir(mode=0o700)
    for name, text in zip(OPERATOR_PARTS, (bundle.ca, bundle.cert, bundle.key), strict=True):
        write_file(credentials / name, text.encode())
    Store.open(building / "store").close()


def _read(file: Path) -> OperatorBundle:
    data = read_file(file, max_bytes=MAX_BUNDLE_BYTES)
    try:
        msgspec.json.decode(data, type=_AsWritten)
        return msgspec.json.decode(data, type=OperatorBundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"{file} is no operator bundle: {error}", hint=_MAKE_ANEW) from error


def _check(bundle: OperatorBundle, file: Path, now: datetime.datetime) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import NameOID

    try:
        authority = x509.load_pem_x509_certificate(bundle.ca.encode())
        certificate = x509.load_pem_x509_certificate(bundle.cert.encode())
        key = load_pem_private_key(bundle.key.encode(), password=None)
        certificate.verify_directly_issued_by(authority)
        common_name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    except (ValueError, TypeError, IndexError, InvalidSignature) as error:
        raise BundleInvalid(
            f"{file}: the certificates in it do not belong together ({error})", hint=_MAKE_ANEW
        ) from error
    if certificate.public_key() != key.public_key():
        raise BundleInvalid(f"{file}: the key in it is not the certificate's", hint=_MAKE_ANEW)
    if common_name != f"operator:{bundle.operator}":
        raise BundleInvalid(f"{file}: the certificate is for {common_name!r}", hint=_MAKE_ANEW)
    if certificate.not_valid_after_utc <= now:
        raise BundleInvalid(f"{file}: the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}")


_MAKE_ANEW: Final = "make a new one with `lowcloud operator add NAME` where the certificate authority is"
