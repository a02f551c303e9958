"""`audit`: what ran at a time, by which release and whom, from the hosts' journals; and whether the records hold
together."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import known_addresses, tell_failures
from tools.output import iso_time, local_time, printable, shorten

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from agent.api.journal import JournalEntry
    from deployer.applying.fleet import Answers
    from deployer.cloud.cloud import Cloud
    from deployer.history.audit import Span
    from tools.output import Output

EXAMPLE = """
lowcloud audit at -5m
lowcloud audit at 2026-03-01T12:00:00Z --host fra1 --json
lowcloud audit timeline --process web
lowcloud audit verify
"""


def prepare(words: list[str]) -> list[str]:
    """`-5m` is a time here and no option."""
    return ["now" + word if re.fullmatch(r"-\d[\d.]*[smhdw]", word) else word for word in words]


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.common_options import add_to_actions

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    at = actions.add_parser("at", help="what ran at a time")
    at.add_argument("time", metavar="TIME", help="ISO 8601, HH:MM, now, or -5m (s, m, h, d, w)")
    timeline = actions.add_parser("timeline", help="everything that ran, in order")
    verify = actions.add_parser("verify", help="check every hash and link of the releases and the journals")
    for action in (at, timeline):
        action.add_argument("--host", metavar="NAME", help="only this host")
        action.add_argument("--process", metavar="NAME", help="only this process")
    add_to_actions((at, timeline, verify))


def run(args: argparse.Namespace, out: Output) -> int:
    if args.action == "verify":
        return _verify(args, out)
    return _show(args, out)


# --- what ran -------------------------------------------------------------------------------------------------------


def _show(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    from deployer.history import audit
    from tools.when import parse_instant

    instant = parse_instant(args.time, time.time_ns()) if args.action == "at" else None
    with open_cloud(args) as cloud:
        answers = asyncio.run(_journals(cloud, args.host))
        spans = audit.timeline(answers.results)
        if instant is not None:
            spans = audit.at(spans, instant)
        spans = [span for span in spans if args.process in (None, span.process)]
        signers = _signers(cloud, spans)
    if out.as_json:
        out.json([{**span_as_dict(span), "signed_by": signers.get(span.release or "")} for span in spans])
    elif spans:
        show_spans(spans, out, signers=signers)
    elif not answers.failures:
        out.remark("nothing ran" + (f" at {local_time(instant)}" if instant is not None else ""))
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE


def span_as_dict(span: Span) -> dict[str, Any]:
    """The stable JSON of one guest's service."""
    return {
        "host": span.host,
        "process": span.process,
        "binary": span.binary,
        "config": span.config,
        "spec": span.spec,
        "release": span.release,
        "plan": span.plan,
        "by": span.by,
        "pid": span.pid,
        "from": iso_time(span.from_unix_ns),
        "to": iso_time(span.to_unix_ns) if span.to_unix_ns is not None else None,
        "ended": span.ended,
    }


def _signers(cloud: Cloud, spans: Sequence[Span]) -> dict[str, str]:
    """Who signed the plans of these spans' releases, as the releases say; `audit verify` proves it."""
    from cas.errors import CasError
    from deployer.errors import DeployerError
    from deployer.history import release

    found: dict[str, str] = {}
    for digest in {span.release for span in spans if span.release}:
        try:
            who = release.read(cloud.store, digest).signed_by
        except (CasError, DeployerError):
            continue  # of another cloud, or collected: the span tells what it can
        if who:
            found[digest] = who
    return found


def show_spans(
    spans: Sequence[Span], out: Output, *, indent: str = "", signers: Mapping[str, str] | None = None
) -> None:
    head = (f"{indent}NAME", "BINARY", "CONFIG", "RELEASE", "BY", "FROM", "TO")
    rows = [
        (
            f"{indent}{span.process}@{span.host}",
            shorten(span.binary),
            ", ".join(f"{path}={shorten(digest)}" for path, digest in sorted(span.config.items())) or "-",
            shorten(span.release),
            _who(span, signers or {}),
            _clock(span.from_unix_ns),
            _clock(span.to_unix_ns) if span.to_unix_ns is not None else "now",
        )
        for span in spans
    ]
    out.table(head, rows)


def _who(span: Span, signers: Mapping[str, str]) -> str:
    signer = signers.get(span.release or "", "").removeprefix("operator:")
    return span.by.removeprefix("operator:") + (f", signed by {signer}" if signer else "")


def _clock(unix_ns: int) -> str:
    """Local time to the millisecond: swaps are shorter than a second."""
    return f"{local_time(unix_ns)}.{unix_ns // 1_000_000 % 1000:03d}"


async def _journals(cloud: Cloud, host: str | None) -> Answers[list[JournalEntry]]:
    from deployer.applying.fleet import Fleet
    from deployer.errors import HostUnknown
    from deployer.history.audit import journals

    addresses = known_addresses(cloud)
    if host is not None and host not in addresses:
        raise HostUnknown(host, sorted(addresses))
    asked = addresses if host is None else {host: addresses[host]}
    async with Fleet(asked, cloud.credentials) as fleet:
        return await journals(fleet)


# --- whether it is so -----------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    from deployer.history.verify import verify

    with open_cloud(args) as cloud:
        answers = asyncio.run(_journals(cloud, None))
        verified = verify(cloud.store, answers.results, cloud.credentials / "ca.pem")
    if out.as_json:
        out.json(
            {
                "releases": verified.releases,
                "hosts": verified.hosts,
                "entries": verified.entries,
                "findings": verified.findings,
                "unreachable": sorted(answers.failures),
            }
        )
    looked_at = f"releases: {verified.releases}, hosts: {verified.hosts}, journal entries: {verified.entries}"
    out.line(f"{looked_at}; {len(verified.findings) or 'nothing'} wrong")
    for finding in verified.findings:
        out.line(f"  {finding.where}: {printable(finding.what)}")
    silent = tell_failures(answers.failures, out)
    return errors.FAILED if verified.findings or silent else errors.DONE
