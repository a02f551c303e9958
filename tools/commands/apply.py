"""`apply`: the hosts are made to run what the definition says. Shows the plan, asks, and carries it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.confirm import confirmed

if TYPE_CHECKING:
    import argparse

    from deployer.applying.fleet import Fleet
    from deployer.applying.outcome import Applied
    from deployer.cloud.cloud import Cloud
    from deployer.history.release import Link
    from deployer.planning.plan import Plan
    from deployer.planning.signing import Signed
    from tools.connections import Connections
    from tools.output import Output

EXAMPLE = """
lowcloud apply
lowcloud apply shop.toml --yes -m "web 2.0"
lowcloud apply shop.plan --json --yes
lowcloud apply --yes --catch-up 10m     # hosts that are away follow when they are back, for so long
lowcloud apply 41c7be90                 # a release that `unbundle` has brought
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.deploying import add_definition_arguments

    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE, PLAN or RELEASE",
        help="a definition (default: as lowcloud.toml says), a plan, or the hash of a release in the store",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("-m", "--message", default="", help="why, for the history")
    parser.add_argument(
        "--catch-up", metavar="TIME", help="as --allow-unreachable, and stay until those hosts are back and run it too"
    )
    parser.add_argument(
        "--forget",
        metavar="HOST",
        action="append",
        default=[],
        help="a host that left the definition, does not answer, and will not come back",
    )
    add_definition_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.applying.outcome import Outcome
    from tools.connections import Connections
    from tools.deploying import carried_out, exit_code, seconds

    with open_cloud(args) as cloud, Connections(cloud) as hosts:
        link = _release(cloud, args)
        _check_forgotten(cloud, args)
        plan, sizes, signed = _plan(cloud, hosts, args, out, link)
        if not agreed(plan, sizes, out, yes=args.yes):
            out.remark("nothing was changed")
            return errors.FAILED
        work = carried_out(
            cloud,
            plan,
            out,
            message=args.message or _message(link),
            signed=signed,
            forget=args.forget,
            catch_up_s=seconds(args.catch_up, "--catch-up") or 0.0,
            fleet=hosts.fleet,
        )
        applied = hosts.run(work)
    finish(applied, out)
    for host in args.forget if applied.outcome is not Outcome.REVERTED else ():
        out.remark(f"{host} is not waited for any more; what it runs, it goes on running until it is told otherwise")
    return exit_code(applied)


def _check_forgotten(cloud: Cloud, args: argparse.Namespace) -> None:
    """Raises UsageError for a host that no release is waiting for."""
    from deployer.history import release

    newest = release.head(cloud.store, cloud.ref) if args.forget else None
    for host in args.forget:
        if newest is None or host not in newest.release.leaving:
            raise errors.UsageError(
                f"{host} is not waited for", hint="`lowcloud history --json` names the hosts that are `leaving`"
            )


def agreed(plan: Plan, sizes: dict[str, int], out: Output, *, yes: bool) -> bool:
    """Show a plan, and whether to carry it out. Where it has no call nobody is asked."""
    from tools.showing import show_plan

    show_plan(plan, sizes, out)
    return plan.is_empty or confirmed("carry it out?", out, yes=yes)


def finish(applied: Applied, out: Output) -> None:
    """Say what came of it."""
    from tools.deploying import applied_as_dict, show_applied

    if out.as_json:
        out.json(applied_as_dict(applied))
    else:
        show_applied(applied, out)


def _release(cloud: Cloud, args: argparse.Namespace) -> Link | None:
    """The release that is to be applied; None where it is a file, or the cloud's own definition."""
    from pathlib import Path

    from cas.digest import abbreviation

    if args.file is None or abbreviation(args.file) is None or Path(args.file).exists():
        return None
    from deployer.history.bundling import find

    if args.locked:
        raise errors.UsageError("a release has every hash already, and no lock file")
    return find(cloud.store, cloud.ref, args.file)


def _message(link: Link | None) -> str:
    """What the history says of a release that was applied without a word."""
    from cas.digest import short

    if link is None:
        return ""
    said = f" ({link.release.message.splitlines()[0]})" if link.release.message else ""
    return f"release {short(link.digest)} by {link.release.by}{said}"


def _plan(
    cloud: Cloud, hosts: Connections, args: argparse.Namespace, out: Output, link: Link | None
) -> tuple[Plan, dict[str, int], Signed | None]:
    from deployer.planning.planners import Version
    from deployer.planning.signing import require
    from tools.deploying import planned, probation_s, release_definition, version_of_file
    from tools.plan_files import plan_in

    given = None if link else plan_in(cloud, args.file)
    plan, signed = given or (None, None)
    require(signed.who if signed else None, required=cloud.config.require_signed_plans)
    if cloud.config.require_signed_plans and args.catch_up:
        raise errors.UsageError("--catch-up makes plans itself, and this cloud carries out signed plans only")
    if plan is None:
        if link is None:
            version = version_of_file(cloud, args.file, out, locked=args.locked)
        else:
            version = Version(link.release.definition, release_definition(cloud, link))
        work = planned(
            cloud,
            version,
            args.planner,
            out,
            allow_unreachable=args.allow_unreachable or args.catch_up is not None,
            probation_s=probation_s(args),
            fleet=hosts.fleet,
        )
        return *hosts.run(work), None
    if args.planner or args.locked or args.probation:
        raise errors.UsageError("a plan that is made already has its planner, its lock and its probations")
    if signed:
        out.remark(f"signed by {signed.who}")
    return plan, hosts.run(_sizes(cloud, plan, hosts.fleet)), signed


async def _sizes(cloud: Cloud, plan: Plan, fleet: Fleet) -> dict[str, int]:
    from deployer.history import release
    from tools.deploying import bytes_to_send, open_site

    async with open_site(cloud, release.read_definition(cloud.store, plan.definition), fleet=fleet) as site:
        return await bytes_to_send(site, plan)
