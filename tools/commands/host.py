"""`host`: what a host has and can guarantee, and how a new one joins.

A new host gets one file: its key, its certificate, the authority's certificate and its settings. `add` makes it here,
a person carries it there, `enroll` opens it into the agent's state directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path
from tools.hosts import known_addresses, tell_failures, waits, weak_limits
from tools.output import counted, size

if TYPE_CHECKING:
    import argparse

    from agent.api.facts import HostFacts
    from deployer.applying.fleet import Answers
    from deployer.cloud.cloud import Cloud
    from tools.output import Output

EXAMPLE = """
lowcloud host show
lowcloud host show fra1 --json
lowcloud host add ams1 --listen 10.0.1.1:7400 -o ams1.bundle
lowcloud host enroll ams1.bundle --state /var/lib/lowcloud      # on the new host
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.common_options import add_to_actions

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="cores, memory, disk, interfaces, and which guarantees the sandbox can give")
    show.add_argument("names", nargs="*", metavar="NAME", help="only these hosts")
    add = actions.add_parser("add", help="make the bundle of a new host: its key and certificate, to carry there")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--listen", metavar="ADDR:PORT", help="where its agent listens (default: as the definition says)")
    add.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: NAME.bundle here")
    enroll = actions.add_parser("enroll", help="open a bundle on the new host")
    enroll.add_argument("bundle", metavar="FILE", type=Path)
    enroll.add_argument("--state", required=True, metavar="DIR", type=Path, help="the agent's state directory")
    add_to_actions((show, add, enroll))


def run(args: argparse.Namespace, out: Output) -> int:
    actions = {"show": _show, "add": _add, "enroll": _enroll}
    return actions[args.action](args, out)


# --- show -----------------------------------------------------------------------------------------------------------


def _show(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    with open_cloud(args) as cloud:
        answers = asyncio.run(_ask(cloud, args.names))
    if out.as_json:
        out.json(list(answers.results.values()))
    for number, facts in enumerate(answers.results.values()):
        if number:
            out.line()
        _show_facts(facts, out)
    return errors.FAILED if tell_failures(answers.failures, out) else errors.DONE


async def _ask(cloud: Cloud, names: list[str]) -> Answers[HostFacts]:
    from deployer.applying.fleet import Fleet

    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        return await fleet.each(names or fleet.hosts, lambda client: client.host())


def _show_facts(facts: HostFacts, out: Output) -> None:
    out.line(f"{facts.host}: {facts.cores} cores, {size(facts.memory_bytes)} memory, {size(facts.disk_bytes)} disk")
    out.line(f"  free disk  {size(facts.disk_free_bytes)}")
    out.line(f"  addresses  {', '.join(facts.addresses)}")
    out.line(f"  kernel     {facts.kernel}")
    out.line(f"  lowcloud   {facts.version}, engine {facts.engine}")
    out.line(f"  store      {counted(facts.store_blobs, 'blob')}, {size(facts.store_bytes)}")
    if facts.sealing_key:
        out.line(f"  secrets    are sealed to {facts.sealing_key}")
    for waiting in facts.waiting or ():
        out.line(f"  waits      {waits(waiting)}")
    for volume in facts.volumes:
        holder = f", held by {volume.held_by}" if volume.held_by else ""
        out.line(f"  volume     {volume.volume}: {size(volume.used_bytes)} of {size(volume.size_bytes)}{holder}")
    if weak := weak_limits(facts.guarantees):
        out.line(f"  limits     {weak}")
    rows = [("  " + row.name, row.strength, row.how) for row in facts.guarantees]
    if rows:
        out.table(("  GUARANTEE", "GIVEN", "HOW"), rows)


# --- add and enroll -------------------------------------------------------------------------------------------------


def _add(args: argparse.Namespace, out: Output) -> int:
    from deployer.cloud import trust
    from deployer.language.endpoints import EndpointError, parse_host_address

    with open_cloud(args) as cloud:
        cloud.host_directory(args.name)  # a name that a host cannot have ends here
        listen = args.listen or _defined_address(cloud, args.name)
        try:
            address = parse_host_address(listen)
        except EndpointError as error:
            raise errors.UsageError(f"--listen: {error}", hint=error.hint) from error
        path = args.output or Path(f"{args.name}.bundle")
        if path.exists():
            raise errors.UsageError(f"{shown_path(path)} exists", hint="remove it, or name another file with -o")
        trust.host_bundle(cloud.authority, args.name, [str(address)], str(address), path)
    if out.as_json:
        out.json({"host": args.name, "listen": str(address), "bundle": shown_path(path)})
    out.line(f"{shown_path(path)} admits {args.name}; it holds a private key: carry it there, then delete it here")
    out.line(f"on {args.name}:")
    out.line(f"  lowcloud host enroll {path.name} --state /var/lib/lowcloud")
    out.line("  lowcloud agent --state /var/lib/lowcloud")
    return errors.DONE


def _defined_address(cloud: Cloud, name: str) -> str:
    from deployer.language.problems import DefinitionInvalid

    hint = f"add it as [host.{name}] to the definition, or give --listen ADDR:PORT"
    try:
        addresses = known_addresses(cloud)
    except DefinitionInvalid:
        addresses = {}
    if name not in addresses:
        raise errors.UsageError(f"nothing says where {name} listens", hint=hint)
    return addresses[name]


def _enroll(args: argparse.Namespace, out: Output) -> int:
    from agent.daemon.sealing import KEY_NAME, SealingKey
    from deployer.cloud import trust

    settings = trust.open_bundle(args.bundle, args.state)
    sealing_key = SealingKey(args.state / KEY_NAME).public()  # made here: its private half never was anywhere else
    if out.as_json:
        facts = {"host": settings.host, "listen": settings.listen, "state": shown_path(args.state)}
        out.json(facts | {"sealing_key": sealing_key})
    out.line(f"{shown_path(args.state)} is the state of {settings.host}; delete {shown_path(args.bundle)} now")
    out.line(f"start it: lowcloud agent --state {shown_path(args.state)}")
    return errors.DONE
