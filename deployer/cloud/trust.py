"""Who may talk to whom: the cloud's own certificate authority, and the certificates it issues.

Every connection between deployer and agents is TLS 1.3 with a certificate on both sides, also on loopback, and every
certificate comes from the one authority in `.lowcloud/ca/`. Names carry the role:

    operator    CN `operator:NAME`   client authentication only; may make calls
    reader      CN `reader:NAME`     client authentication only; may look at hosts, and change nothing
    host        CN `host:NAME`       DNS SAN `NAME.host.lowcloud`, which the deployer checks instead of an address, so a
                                     host may change its address and keep its certificate

A party's credentials are a directory with `ca.pem`, `cert.pem` and `key.pem` (0600). Keys are ECDSA P-256.

**Validity.** The authority 10 years, what it issues 2 years (never longer than the authority), all from one day before
they were made, for clocks that differ. **Renewal** is issuing again: the new certificate replaces the old file, and
both are good until they expire; `days_left` tells when. An operator: `issue_operator` over the same directory. A host:
`lowcloud host add NAME` and carry the bundle there, or `issue_host`. There is no revocation list: a key that was lost
to a stranger means a new authority and new certificates for everyone (docs/operations.md).
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from deployer.cloud.files import read_file, write_file
from deployer.errors import BundleInvalid, TrustError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_VALID_DAYS: Final = 3652
LEAF_VALID_DAYS: Final = 730
CLOCK_SKEW: Final = datetime.timedelta(days=1)
RENEW_BELOW_DAYS: Final = 60
"""A command should remind of renewal when fewer days than this are left."""

MAX_COMMON_NAME: Final = 64
"""X.520's upper bound."""
HOST_SUFFIX: Final = ".host.lowcloud"
MAX_PEM_BYTES: Final = 1 << 16
MAX_BUNDLE_BYTES: Final = 1 << 18
SETTINGS_NAME: Final = "agent.json"
CREDENTIALS_NAME: Final = "credentials"

PartyName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}$")]


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent has to know to begin: kept as `agent.json` in its state directory."""

    host: PartyName
    listen: Annotated[str, Meta(max_length=256, description="address:port")]


class HostBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that is carried to a new host (JSON, 0600). It holds the host's private key: delete it once opened."""

    format: Literal["lowcloud-host-bundle"]
    version: Literal[1]
    settings: AgentSettings
    ca: Annotated[str, Meta(max_length=MAX_PEM_BYTES)]
    cert: Annotated[str, Meta(max_length=MAX_PEM_BYTES)]
    key: Annotated[str, Meta(max_length=MAX_PEM_BYTES)]


class _Issued(msgspec.Struct, frozen=True):
    ca: bytes
    cert: bytes
    key: bytes


def host_dns_name(host: str) -> str:
    """The name in a host's certificate that the deployer checks."""
    return host + HOST_SUFFIX


# --- the authority --------------------------------------------------------------------------------------------------


def create_authority(directory: Path, *, now: datetime.datetime | None = None) -> None:
    """Make a certificate authority in a new directory (0700). Raises TrustError where there is one already."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if (directory / "key.pem").exists():
        raise TrustError(f"{directory} already holds a certificate authority")
    now = now or _utc_now()
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = _name(f"lowcloud authority {serial:040x}"[:40])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / "key.pem", _key_pem(key))
    write_file(directory / "ca.pem", _certificate_pem(certificate), mode=0o644)


def issue_operator(authority: Path, name: str, to: Path, *, now: datetime.datetime | None = None) -> Path:
    """A new key and certificate for an operator, into the directory `to`, which is returned. Raises TrustError."""
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issued = _issue(authority, f"operator:{_party_name(name)}", (), (ExtendedKeyUsageOID.CLIENT_AUTH,), now)
    return _write_credentials(issued, to)


def issue_reader(authority: Path, name: str, to: Path, *, now: datetime.datetime | None = None) -> Path:
    """As `issue_operator`, for somebody who may look at hosts and change nothing, such as a monitoring system."""
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issued = _issue(authority, f"reader:{_party_name(name)}", (), (ExtendedKeyUsageOID.CLIENT_AUTH,), now)
    return _write_credentials(issued, to)


def issue_host(
    authority: Path, name: str, addresses: Iterable[str], to: Path, *, now: datetime.datetime | None = None
) -> Path:
    """A new key and certificate for a host, into the directory `to`, which is returned. `addresses` (with or without a
    port) are added to the certificate for people and other tools; lowcloud checks the name. Raises TrustError."""
    return _write_credentials(_issue_for_host(authority, name, addresses, now), to)


def host_bundle(
    authority: Path,
    name: str,
    addresses: Iterable[str],
    listen: str,
    to: Path,
    *,
    now: datetime.datetime | None = None,
) -> Path:
    """A new host's key, certificate and settings as the one file `to` (0600), which is returned. No copy of the private
    key is kept. `listen` is the address:port of the new host's agent. Raises TrustError."""
    issued = _issue_for_host(authority, name, addresses, now)
    bundle = HostBundle(
        format="lowcloud-host-bundle",
        version=1,
        settings=AgentSettings(host=name, listen=listen),
        ca=issued.ca.decode(),
        cert=issued.cert.decode(),
        key=issued.key.decode(),
    )
    write_file(to, msgspec.json.format(msgspec.json.encode(bundle), indent=1) + b"\n")
    return to


# --- on the new host ------------------------------------------------------------------------------------------------


def open_bundle(file: Path, state: Path, *, now: datetime.datetime | None = None) -> AgentSettings:
    """Put what a bundle holds into an agent's state directory: `credentials/` and `agent.json`. Opening it again, or a
    renewed one, replaces them. Raises BundleInvalid where its parts do not belong together, or where the directory is
    that of another host."""
    try:
        bundle = msgspec.json.decode(read_file(file, max_bytes=MAX_BUNDLE_BYTES), type=HostBundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"{file} is no host bundle: {error}") from error
    _check_bundle(bundle, file, now or _utc_now())
    if (state / SETTINGS_NAME).exists() and (before := read_settings(state)).host != bundle.settings.host:
        raise BundleInvalid(
            f"{state} belongs to host {before.host!r}, the bundle to {bundle.settings.host!r}",
            hint="give each host a state directory of its own",
        )
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    issued = _Issued(bundle.ca.encode(), bundle.cert.encode(), bundle.key.encode())
    _write_credentials(issued, state / CREDENTIALS_NAME)
    write_file(state / SETTINGS_NAME, msgspec.json.encode(bundle.settings))
    return bundle.settings


def read_settings(state: Path) -> AgentSettings:
    """The settings that `open_bundle` left in a state directory. Raises BundleInvalid, BadInput."""
    path = state / SETTINGS_NAME
    try:
        return msgspec.json.decode(read_file(path, max_bytes=MAX_PEM_BYTES), type=AgentSettings)
    except msgspec.DecodeError as error:
        raise BundleInvalid(f"{path} does not hold an agent's settings: {error}") from error


def _check_bundle(bundle: HostBundle, file: Path, now: datetime.datetime) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        authority = x509.load_pem_x509_certificate(bundle.ca.encode())
        certificate = x509.load_pem_x509_certificate(bundle.cert.encode())
        key = load_pem_private_key(bundle.key.encode(), password=None)
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BundleInvalid(f"{file}: the certificates in it do not belong together ({error})") from error
    if certificate.public_key() != key.public_key():
        raise BundleInvalid(f"{file}: the key in it is not the certificate's")
    if _common_name(certificate) != f"host:{bundle.settings.host}":
        raise BundleInvalid(f"{file}: the certificate is for {_common_name(certificate)!r}")
    if certificate.not_valid_after_utc <= now:
        raise BundleInvalid(f"{file}: the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}")


# --- reading credentials --------------------------------------------------------------------------------------------


def common_name(credentials: Path) -> str:
    """Whose credentials these are: `operator:NAME` or `host:NAME`. Raises TrustError."""
    return _common_name(_load_certificate(credentials / "cert.pem"))


def days_left(credentials: Path, *, now: datetime.datetime | None = None) -> float:
    """Days until a party's certificate or its authority expires, whichever is first; below 0 it has. Raises
    TrustError."""
    ends = min(_load_certificate(credentials / file).not_valid_after_utc for file in ("cert.pem", "ca.pem"))
    return (ends - (now or _utc_now())) / datetime.timedelta(days=1)


def _load_certificate(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(read_file(path, max_bytes=MAX_PEM_BYTES))
    except ValueError as error:
        raise TrustError(f"{path} is no certificate: {error}", hint="restore it from your backup") from error


def _common_name(certificate: x509.Certificate) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


# --- issuing --------------------------------------------------------------------------------------------------------


def _issue_for_host(authority: Path, name: str, addresses: Iterable[str], now: datetime.datetime | None) -> _Issued:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    alternatives: list[x509.GeneralName] = [x509.DNSName(host_dns_name(_party_name(name)))]
    for address in dict.fromkeys(_without_port(address) for address in addresses):
        with contextlib.suppress(ValueError):
            alternatives.append(x509.IPAddress(ipaddress.ip_address(address)))
    usages = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    return _issue(authority, f"host:{name}", alternatives, usages, now)


def _issue(
    authority: Path,
    name: str,
    alternatives: Iterable[x509.GeneralName],
    usages: Iterable[x509.ObjectIdentifier],
    now: datetime.datetime | None,
) -> _Issued:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    now = now or _utc_now()
    ca_key, ca_certificate = _load_authority(authority, now)
    key = ec.generate_private_key(ec.SECP256R1())
    names = list(alternatives)
    ca_identifier = ca_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    until = min(now + datetime.timedelta(days=LEAF_VALID_DAYS), ca_certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(ca_certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    return _Issued(_certificate_pem(ca_certificate), _certificate_pem(certificate), _key_pem(key))


def _load_authority(directory: Path, now: datetime.datetime) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not (directory / "key.pem").exists():
        raise TrustError(
            f"{directory} holds no authority's key, so no certificate can be issued here",
            hint="issue it where the cloud was made, or restore the key from your backup",
        )
    certificate = _load_certificate(directory / "ca.pem")
    try:
        key = load_pem_private_key(read_file(directory / "key.pem", max_bytes=MAX_PEM_BYTES), password=None)
    except (ValueError, TypeError) as error:
        raise TrustError(f"{directory / 'key.pem'} is no key: {error}", hint="restore it from your backup") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise TrustError(
            f"{directory / 'key.pem'} is not the key of {directory / 'ca.pem'}", hint="restore both from your backup"
        )
    if certificate.not_valid_after_utc <= now:
        raise TrustError(
            f"the authority in {directory} expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
            hint="docs/operations.md tells how to make a new one",
        )
    return key, certificate


def _write_credentials(issued: _Issued, to: Path) -> Path:
    """The key first: a reader that comes in between finds a pair that does not match, never a missing file."""
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(to / "key.pem", issued.key)
    write_file(to / "cert.pem", issued.cert)
    write_file(to / "ca.pem", issued.ca)
    return to


def _party_name(name: str) -> str:
    try:
        return msgspec.convert(name, PartyName)
    except msgspec.ValidationError as error:
        raise TrustError(
            f"{name!r} cannot be a name in a certificate", hint="lower-case letters, digits and hyphens, a letter first"
        ) from error


def _without_port(address: str) -> str:
    """`10.0.0.1:7400`, `[::1]:7400`, `10.0.0.1` and `::1` without what is not the address."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, port = address.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else address


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if len(common_name) > MAX_COMMON_NAME:
        raise TrustError(
            f"{common_name!r} is longer than the {MAX_COMMON_NAME} characters that a name in a certificate may have",
            hint="choose a shorter name",
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
