"""`status`: where what runs differs from what the newest release says, field by field. Computed from what hosts report.

Ends with 1 where something differs, so that a script can ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.hosts import tell_undecided, tell_waiting
from tools.output import counted, local_time, printable, shorten

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from deployer.applying.observe import Observed
    from deployer.cloud.cloud import Cloud
    from deployer.language.schema import Definition
    from tools.output import Output

EXAMPLE = """
lowcloud status
lowcloud status --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    del parser  # no arguments of its own


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    from deployer.applying.drift import drift
    from deployer.history import release

    with open_cloud(args) as cloud:
        link = release.head(cloud.store, cloud.ref)
        definition = release.read_definition(cloud.store, link.release.definition) if link else None
        leaving = link.release.leaving if link else {}
        observed = asyncio.run(_observe(cloud, definition, leaving))
    found = drift(definition, observed)
    running = sum(len(state.processes) for state in observed.hosts.values())
    if out.as_json:
        out.json(
            {
                "release": link.digest if link else None,
                "definition": link.release.definition if link else None,
                "hosts": sorted(observed.hosts),
                "unreachable": observed.unreachable,
                "processes": running,
                "drift": found,
                "undecided": observed.undecided,
                "waiting": {host: facts.waiting for host, facts in observed.facts.items() if facts.waiting},
            }
        )
    if link:
        made = f"{local_time(link.release.at_unix_ns)} by {link.release.by.removeprefix('operator:')}"
        what = f"{counted(running, 'process', 'processes')} on {counted(len(observed.hosts), 'host', 'hosts')}"
        out.line(f"release {shorten(link.digest)}, {made}; {what}")
    else:
        out.line("nothing is released yet")
    rows = [
        (row.host, row.process or "-", row.field, printable(row.runs) or "-", printable(row.should) or "-")
        for row in found
    ]
    if rows:
        out.table(("HOST", "PROCESS", "FIELD", "RUNS", "SHOULD"), rows)
        if any(row.field not in ("host", "state") for row in found):
            out.line("`lowcloud apply` makes it so")
        if any(row.field == "state" for row in found):
            out.line("`lowcloud logs PROCESS@HOST` shows what a process printed before it ended")
    elif link:
        out.line("everything runs as it should")
    tell_undecided(observed.undecided, out)
    tell_waiting({host: facts.waiting for host, facts in observed.facts.items()}, out)
    return errors.FAILED if found else errors.DONE


async def _observe(cloud: Cloud, definition: Definition | None, leaving: Mapping[str, str]) -> Observed:
    """What the hosts say that should run something, and those that should not any more and may."""
    from deployer.applying.fleet import Fleet
    from deployer.applying.observe import observe
    from tools.hosts import known_addresses

    addresses = known_addresses(cloud)
    async with Fleet({**leaving, **addresses}, cloud.credentials) as fleet:
        return await observe(fleet, {*definition.host, *leaving} if definition else addresses)
