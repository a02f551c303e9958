"""Who may talk to whom: TLS 1.3 with certificates on both sides, and the role that a certificate gives.

A party's credentials are a directory with `ca.pem` (whom it believes), `cert.pem` and `key.pem` (who it is). The
certificate of host NAME carries the DNS name `NAME.host.lowcloud` and the common name `host:NAME`; that of operator
NAME the common name `operator:NAME`. A client asks for the host's name and not for its address, so a host may move and
another machine at its address is found out.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HOST_DOMAIN: Final = "host.lowcloud"
OPERATOR: Final = "operator"
HOST: Final = "host"
READER: Final = "reader"
"""May look, and change nothing."""

CA_FILE: Final = "ca.pem"
CERTIFICATE_FILE: Final = "cert.pem"
KEY_FILE: Final = "key.pem"


class CredentialsUnusable(Exception):
    """A credentials directory that lacks a file, or holds one that is not what it should be."""

    hint = "`lowcloud init` makes an operator's credentials, `lowcloud host add` a host's"


def server_name(host: str) -> str:
    """The DNS name in the certificate of a host."""
    return f"{host}.{HOST_DOMAIN}"


def server_context(directory: Path) -> ssl.SSLContext:
    """A host's side: no connection without a certificate of the same authority. Raises CredentialsUnusable."""
    context = _context(directory, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nobody comes back to a session, and the two that are usual hold the caller's certificate
    return context


def client_context(directory: Path) -> ssl.SSLContext:
    """The calling side; use it with `server_hostname=server_name(host)`. Raises CredentialsUnusable."""
    return _context(directory, ssl.PROTOCOL_TLS_CLIENT)


def common_name(certificate: Mapping[str, Any] | None) -> str:
    """The common name of a verified certificate as `ssl` hands it out; "" where it has none."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


def role_of(name: str) -> str:
    """`operator`, `host`, `reader`, or "" for a common name that gives no role."""
    role, separator, who = name.partition(":")
    return role if separator and who and role in (OPERATOR, HOST, READER) else ""


def _context(directory: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cafile=str(directory / CA_FILE))
        context.load_cert_chain(str(directory / CERTIFICATE_FILE), str(directory / KEY_FILE))
    except FileNotFoundError as error:
        absent = [name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE) if not (directory / name).is_file()]
        raise CredentialsUnusable(f"credentials {directory} lack {', '.join(absent) or error}") from error
    except (OSError, ssl.SSLError) as error:
        raise CredentialsUnusable(f"credentials {directory} cannot be used: {error}") from error
    return context
