"""`apply`: the hosts are made to run what the definition says. Shows the plan, asks, and carries it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.confirm import confirmed

if TYPE_CHECKING:
    import argparse

    from deployer.cloud import Cloud
    from deployer.outcome import Applied
    from deployer.plan import Plan
    from tools.output import Output

EXAMPLE = """
lowcloud apply
lowcloud apply shop.toml --yes -m "web 2.0"
lowcloud apply shop.plan --json --yes
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.deploying import add_definition_arguments

    parser.add_argument(
        "file", nargs="?", metavar="FILE or PLAN", help="a definition (default: as lowcloud.toml says), or a plan"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("-m", "--message", default="", help="why, for the history")
    add_definition_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    from tools.deploying import carried_out, exit_code

    with open_cloud(args) as cloud:
        plan, sizes = _plan(cloud, args, out)
        if not agreed(plan, sizes, out, yes=args.yes):
            out.remark("nothing was changed")
            return errors.FAILED
        applied = asyncio.run(carried_out(cloud, plan, out, message=args.message))
    finish(applied, out)
    return exit_code(applied)


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


def _plan(cloud: Cloud, args: argparse.Namespace, out: Output) -> tuple[Plan, dict[str, int]]:
    import asyncio

    from deployer.signing import require
    from tools.deploying import planned, probation_s, version_of_file
    from tools.plan_files import plan_in

    given = plan_in(cloud, args.file)
    plan, signer = given or (None, None)
    require(signer, required=cloud.config.require_signed_plans)
    if plan is None:
        version = version_of_file(cloud, args.file, out, locked=args.locked)
        work = planned(
            cloud,
            version,
            args.planner,
            allow_unreachable=args.allow_unreachable,
            probation_s=probation_s(args),
        )
        return asyncio.run(work)
    if args.planner or args.locked or args.probation:
        raise errors.UsageError("a plan that is made already has its planner, its lock and its probations")
    if signer:
        out.remark(f"signed by {signer}")
    return plan, asyncio.run(_sizes(cloud, plan))


async def _sizes(cloud: Cloud, plan: Plan) -> dict[str, int]:
    from deployer import release
    from tools.deploying import bytes_to_send, open_site

    async with open_site(cloud, release.read_definition(cloud.store, plan.definition)) as site:
        return await bytes_to_send(site, plan)
