"""`agent`: the daemon of one host. It stays in the foreground; a service manager keeps it running (docs/operations.md).

It prints one line of JSON when it is ready and writes its messages to stderr. SIGTERM ends the agent; the guests stay
and are taken over by the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud agent --host fra1 --listen 10.0.0.1:7400 --state /var/lib/lowcloud
lowcloud agent --state /var/lib/lowcloud       # after `lowcloud host enroll`
"""

MIN_RATE_BYTES_S = 64 << 10
"""Slower, and others would take this host for one that has stalled."""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.local_cloud import add_network_argument

    parser.add_argument("--state", required=True, metavar="DIR", type=Path, help="where this host keeps everything")
    parser.add_argument("--host", metavar="NAME", help="its name (default: from the enrolled bundle)")
    parser.add_argument("--listen", metavar="ADDR:PORT", help="where it listens (default: from the enrolled bundle)")
    parser.add_argument("--credentials", metavar="DIR", type=Path, help="default: credentials/ in the state directory")
    parser.add_argument(
        "--shared", action="store_true", help="other agents share this machine: give no process a core of its own"
    )
    parser.add_argument(
        "--peer-rate", metavar="SIZE", help="bytes a second that this host gives to others, and takes from them, in all"
    )
    parser.add_argument("--link-rate", metavar="SIZE", help="the same for each other host")
    add_network_argument(parser)
    parser.add_argument("--store-quota", metavar="SIZE", help="the most that its blobs may take on disk")


def run(args: argparse.Namespace, out: Output) -> int:
    del out  # the daemon prints its one line itself
    state = args.state.absolute()
    host, listen = args.host, args.listen
    if host is None or listen is None:
        settings = _enrolled(state)
        host, listen = host or settings[0], listen or settings[1]
    from agent import main as daemon
    from agent.daemon.peering.limits import PeerLimits

    limits = PeerLimits(_rate("--peer-rate", args.peer_rate), _rate("--link-rate", args.link_rate))
    daemon.run(
        host,
        listen,
        state,
        args.credentials,
        pin=not args.shared,
        peer_limits=limits,
        store_quota_bytes=_bytes("--store-quota", args.store_quota),
        network=args.network,
    )
    return errors.DONE


def _rate(option: str, text: str | None) -> int | None:
    """Bytes a second. Raises UsageError."""
    rate = _bytes(option, text)
    if rate is not None and rate < MIN_RATE_BYTES_S:
        raise errors.UsageError(f"{option} is at least 64KiB")
    return rate


def _bytes(option: str, text: str | None) -> int | None:
    """Raises UsageError."""
    if text is None:
        return None
    from deployer.language.schema import Unit
    from deployer.language.units import UnitError, parse

    try:
        return parse(Unit.BYTES, text)
    except UnitError as error:
        raise errors.UsageError(f"{option}: {error}", hint=error.hint) from error


def _enrolled(state: Path) -> tuple[str, str]:
    from deployer.cloud import trust

    if not (state / trust.SETTINGS_NAME).exists():
        raise errors.UsageError(
            f"{state} is not enrolled, so --host and --listen are needed",
            hint="`lowcloud host add NAME` makes the bundle, `lowcloud host enroll FILE --state DIR` opens it here",
        )
    settings = trust.read_settings(state)
    return settings.host, settings.listen
