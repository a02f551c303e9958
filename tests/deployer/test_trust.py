"""Certificates: they work with TLS 1.3 as Python checks it, they carry the agreed names, and nothing else is let in."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from deployer.cloud import trust
from deployer.errors import BadInput, BundleInvalid, TrustError

NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("authority") / "ca"
    trust.create_authority(directory)
    return directory


def strict(context: ssl.SSLContext, credentials: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(credentials / "ca.pem")
    context.load_cert_chain(credentials / "cert.pem", credentials / "key.pem")
    return context


def common_name(connection: ssl.SSLSocket) -> str:
    certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    attributes = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value)


def shake_hands(server: Path, client: Path, name: str) -> tuple[str, str | None]:
    """A TLS handshake over a socket pair: the client certificate's CN as the server saw it, and the TLS version."""
    server_context = strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server)
    client_context = strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), client)
    left, right = socket.socketpair()
    left.settimeout(60)
    right.settimeout(60)
    seen: list[str] = []

    def serve() -> None:
        try:
            with server_context.wrap_socket(left, server_side=True) as connection:
                seen.append(common_name(connection))
                connection.sendall(b"!")
        except OSError as error:
            seen.append(f"refused: {error}")
        finally:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_context.wrap_socket(right, server_hostname=name) as connection:
            version = connection.version()
            assert connection.recv(1) == b"!"
    finally:
        right.close()
        thread.join(60)
    return seen[0], version


def test_a_host_and_an_operator_trust_each_other_over_tls_1_3(authority: Path, tmp_path: Path) -> None:
    host = trust.issue_host(authority, "fra1", ["127.0.0.1:7400"], tmp_path / "host")
    operator = trust.issue_operator(authority, "ada", tmp_path / "operator")
    assert shake_hands(host, operator, "fra1.host.lowcloud") == ("operator:ada", "TLSv1.3")


def test_two_hosts_trust_each_other(authority: Path, tmp_path: Path) -> None:
    one = trust.issue_host(authority, "fra1", [], tmp_path / "one")
    other = trust.issue_host(authority, "fra2", [], tmp_path / "other")
    assert shake_hands(one, other, "fra1.host.lowcloud") == ("host:fra2", "TLSv1.3")


def test_a_host_cannot_pass_for_another(authority: Path, tmp_path: Path) -> None:
    host = trust.issue_host(authority, "fra2", [], tmp_path / "host")
    operator = trust.issue_operator(authority, "ada", tmp_path / "operator")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"fra1\.host\.lowcloud"):
        shake_hands(host, operator, "fra1.host.lowcloud")


def test_an_operator_cannot_pass_for_a_host(authority: Path, tmp_path: Path) -> None:
    operator = trust.issue_operator(authority, "fra1", tmp_path / "operator")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(operator, operator, "fra1.host.lowcloud")


def test_a_strangers_authority_is_refused_by_both_sides(authority: Path, tmp_path: Path) -> None:
    trust.create_authority(tmp_path / "stranger")
    host = trust.issue_host(authority, "fra1", [], tmp_path / "host")
    stranger = trust.issue_operator(tmp_path / "stranger", "eve", tmp_path / "eve")
    with pytest.raises(ssl.SSLError):
        shake_hands(host, stranger, "fra1.host.lowcloud")
    (stranger / "ca.pem").write_bytes((authority / "ca.pem").read_bytes())
    with pytest.raises(OSError, match=r"(?i)unknown ca|reset|EOF"):
        shake_hands(host, stranger, "fra1.host.lowcloud")


def test_keys_are_readable_by_their_owner_only(authority: Path, tmp_path: Path) -> None:
    host = trust.issue_host(authority, "fra1", [], tmp_path / "host")
    for key in (authority / "key.pem", host / "key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for directory in (authority, host):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_names_and_days_left_can_be_read_back(tmp_path: Path) -> None:
    trust.create_authority(tmp_path / "ca", now=NOW)
    operator = trust.issue_operator(tmp_path / "ca", "ada", tmp_path / "operator", now=NOW)
    assert trust.common_name(operator) == "operator:ada"
    assert trust.days_left(operator, now=NOW) == trust.LEAF_VALID_DAYS


def test_a_certificate_never_outlives_its_authority_and_an_expired_authority_issues_nothing(tmp_path: Path) -> None:
    trust.create_authority(tmp_path / "ca", now=NOW)
    late = NOW + datetime.timedelta(days=trust.AUTHORITY_VALID_DAYS - 10)
    operator = trust.issue_operator(tmp_path / "ca", "ada", tmp_path / "operator", now=late)
    assert trust.days_left(operator, now=late) == 10
    with pytest.raises(TrustError, match="expired"):
        trust.issue_operator(tmp_path / "ca", "ada", tmp_path / "again", now=late + datetime.timedelta(days=11))


def test_issuing_again_renews(authority: Path, tmp_path: Path) -> None:
    trust.issue_host(authority, "fra1", [], tmp_path / "host")
    before = (tmp_path / "host" / "cert.pem").read_bytes()
    trust.issue_host(authority, "fra1", [], tmp_path / "host")
    assert (tmp_path / "host" / "cert.pem").read_bytes() != before
    operator = trust.issue_operator(authority, "ada", tmp_path / "operator")
    assert shake_hands(tmp_path / "host", operator, "fra1.host.lowcloud")[0] == "operator:ada"


@pytest.mark.parametrize("name", ["", "Ada", "../x", "a/b", "a" * 64, "a" * 60])
def test_a_name_that_cannot_be_in_a_certificate_is_refused(authority: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(TrustError):
        trust.issue_operator(authority, name, tmp_path / "operator")


def test_an_authority_is_never_overwritten(authority: Path) -> None:
    with pytest.raises(TrustError, match="already"):
        trust.create_authority(authority)


def test_the_wrong_key_of_an_authority_is_noticed(authority: Path, tmp_path: Path) -> None:
    trust.create_authority(tmp_path / "ca")
    (tmp_path / "ca" / "key.pem").write_bytes((authority / "key.pem").read_bytes())
    with pytest.raises(TrustError, match="not the key of"):
        trust.issue_operator(tmp_path / "ca", "ada", tmp_path / "operator")


# --- bundles --------------------------------------------------------------------------------------------------------


def make_bundle(authority: Path, to: Path, host: str = "fra1", **more: datetime.datetime) -> Path:
    return trust.host_bundle(authority, host, ["10.0.0.1:7400"], "10.0.0.1:7400", to, **more)


def test_a_bundle_brings_a_host_everything_it_needs(authority: Path, tmp_path: Path) -> None:
    bundle = make_bundle(authority, tmp_path / "fra1.json")
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    settings = trust.open_bundle(bundle, tmp_path / "state")
    assert settings == trust.AgentSettings(host="fra1", listen="10.0.0.1:7400")
    assert trust.read_settings(tmp_path / "state") == settings
    operator = trust.issue_operator(authority, "ada", tmp_path / "operator")
    assert shake_hands(tmp_path / "state" / "credentials", operator, "fra1.host.lowcloud")[0] == "operator:ada"
    assert stat.S_IMODE((tmp_path / "state" / "credentials" / "key.pem").stat().st_mode) == 0o600


def test_a_bundle_of_another_host_is_refused_in_a_directory_that_is_taken(authority: Path, tmp_path: Path) -> None:
    trust.open_bundle(make_bundle(authority, tmp_path / "1"), tmp_path / "state")
    trust.open_bundle(make_bundle(authority, tmp_path / "renewed"), tmp_path / "state")
    with pytest.raises(BundleInvalid, match="belongs to host 'fra1'"):
        trust.open_bundle(make_bundle(authority, tmp_path / "2", "fra2"), tmp_path / "state")


def damaged(bundle: Path, **fields: object) -> bytes:
    content = msgspec.json.decode(bundle.read_bytes())
    content.update(fields)
    return msgspec.json.encode(content)


def test_a_damaged_bundle_is_refused_and_leaves_nothing(authority: Path, tmp_path: Path) -> None:
    good = make_bundle(authority, tmp_path / "good")
    other = msgspec.json.decode(make_bundle(authority, tmp_path / "other", "fra2").read_bytes())
    trust.create_authority(tmp_path / "stranger")
    bad = [
        b"",
        b"{}",
        b"\xff\x00",
        good.read_bytes()[:-40],
        damaged(good, version=2),
        damaged(good, format="something"),
        damaged(good, more=1),
        damaged(good, settings={"host": "../x", "listen": "10.0.0.1:1"}),
        damaged(good, settings={"host": "fra3", "listen": "10.0.0.1:1"}),
        damaged(good, cert="no certificate"),
        damaged(good, cert=other["cert"]),
        damaged(good, key=other["key"]),
        damaged(good, key="no key"),
        damaged(good, ca=(tmp_path / "stranger" / "ca.pem").read_text()),
        b" " * (trust.MAX_BUNDLE_BYTES + 1),
    ]
    for content in bad:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(BadInput):
            trust.open_bundle(tmp_path / "bad", tmp_path / "state")
        assert not (tmp_path / "state").exists()


def test_an_expired_bundle_is_refused(authority: Path, tmp_path: Path) -> None:
    bundle = make_bundle(authority, tmp_path / "fra1.json")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=trust.LEAF_VALID_DAYS + 1)
    with pytest.raises(BundleInvalid, match="expired"):
        trust.open_bundle(bundle, tmp_path / "state", now=later)
