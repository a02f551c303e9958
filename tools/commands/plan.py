"""`plan`: what an apply would do, and because of which field. Nothing on any host changes.

One look at the hosts serves every question: one plan, all planners side by side (`--compare`), or what would happen if
something failed on the way (`--simulate`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools import errors
from tools.cloud import open_cloud, shown_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from deployer.applying.transfer import Lack
    from deployer.cloud.cloud import Cloud
    from deployer.planning.plan import Plan
    from deployer.planning.planners import Version
    from deployer.planning.planning import StartingPoint
    from deployer.planning.timing import Links
    from tools.output import Output

EXAMPLE = """
lowcloud plan
lowcloud plan shop.toml --planner canary --probation 5m --sign -o shop.plan
lowcloud plan --show shop.plan
lowcloud plan --compare --link 2MiB
lowcloud plan --planner rolling --simulate --fail never-ready=web --fail host-down --seed 7
lowcloud plan --exit-code --json        # 3 if something would change
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.deploying import add_definition_arguments

    parser.add_argument("file", nargs="?", metavar="FILE", help="the definition (default: as lowcloud.toml says)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the plan here, for `lowcloud apply`")
    parser.add_argument("--sign", action="store_true", help="sign what -o writes, with this operator's key")
    parser.add_argument("--exit-code", action="store_true", help="end with 3 if something would change")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", type=Path, metavar="PLAN", help="show a plan that was written, and who signed it")
    instead.add_argument("--reverse", type=Path, metavar="PLAN", help="plan the way back from a plan that was applied")
    instead.add_argument("--compare", action="store_true", help="show what all planners would do, side by side")
    instead.add_argument("--simulate", action="store_true", help="carry it out on a model of the hosts")
    parser.add_argument(
        "--fail", action="append", default=[], metavar="KIND[=WHERE]",
        help="what fails: host-down[=HOST], slow-link[=HOST], never-ready[=NAME[@HOST]], dies-later[=NAME[@HOST]]",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="decides what --fail leaves open; alone, all of it")
    parser.add_argument("--link", metavar="SIZE", help="bytes per second to each host, for estimates (12.5MB)")
    parser.add_argument("--round-trip", metavar="TIME", help="to each host, for estimates (20ms)")
    add_definition_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    _check_words(args)
    with open_cloud(args) as cloud:
        if args.show:
            return _show(cloud, args, out)
        if args.reverse:
            return _reverse(cloud, args, out)
        from tools.deploying import version_of_file

        survey = _survey(cloud, version_of_file(cloud, args.file, out, locked=args.locked), args, out)
        if args.compare:
            return _compare(cloud, survey, args, out)
        if args.simulate:
            return _simulate(cloud, survey, args, out)
        return _tell(cloud, survey.plan, survey.sizes(cloud), args, out)


def _check_words(args: argparse.Namespace) -> None:
    if (args.fail or args.seed is not None) and not args.simulate:
        raise errors.UsageError("--fail and --seed are for --simulate")
    if args.sign and not args.output:
        raise errors.UsageError("--sign signs what -o writes", hint="add -o FILE")
    if (args.show or args.reverse) and (args.file or args.planner or args.locked):
        raise errors.UsageError("--show and --reverse take a plan, not a definition or a planner")


# --- looking --------------------------------------------------------------------------------------------------------


class _Survey(NamedTuple):
    """One look at the history and the hosts, and what the hosts lack."""

    start: StartingPoint
    plan: Plan
    """The plan of the planner that was asked for. All planners make the same calls, so their blobs are the same."""
    lacking: Mapping[str, Lack]

    def sizes(self, cloud: Cloud) -> dict[str, int]:
        from deployer.applying.transfer import costs

        return costs(cloud.store, self.lacking)


def _survey(cloud: Cloud, version: Version, args: argparse.Namespace, out: Output) -> _Survey:
    import asyncio

    async def look() -> _Survey:
        from deployer.applying.transfer import lacks
        from deployer.planning.plan import blobs_by_host
        from deployer.planning.planning import starting_point
        from tools.deploying import Telling, open_site, probation_s

        async with open_site(cloud, version.definition, Telling(out)) as site:
            start = await starting_point(site, version, allow_unreachable=args.allow_unreachable)
            plan = start.plan(args.planner or cloud.config.planner, probation_s=probation_s(args))
            return _Survey(start, plan, await lacks(site, blobs_by_host(plan)))

    return asyncio.run(look())


def _links(args: argparse.Namespace) -> Links:
    from deployer.language.schema import Unit
    from deployer.language.units import UnitError, parse
    from deployer.planning.timing import Links

    usual = Links()
    try:
        rate = float(parse(Unit.BYTES, args.link)) if args.link else usual.bytes_per_s
        round_trip_s = parse(Unit.MILLISECONDS, args.round_trip) / 1000 if args.round_trip else usual.round_trip_s
    except UnitError as error:
        raise errors.UsageError(str(error), hint=error.hint) from error
    if rate <= 0:
        raise errors.UsageError("--link is more than nothing")
    return Links(rate, round_trip_s)


# --- answering ------------------------------------------------------------------------------------------------------


def _tell(cloud: Cloud, plan: Plan, sizes: dict[str, int], args: argparse.Namespace, out: Output) -> int:
    from tools import plan_files
    from tools.showing import plan_as_dict, show_plan

    if args.output:
        plan_files.write(cloud, plan, args.output, signed=args.sign)
    if out.as_json:
        out.json(plan_as_dict(plan, sizes))
    else:
        show_plan(plan, sizes, out)
        if args.output:
            file = shown_path(args.output)
            signed = " and signed" if args.sign else ""
            out.line(f"written to {file}{signed}; carry it out with `lowcloud apply {file}`")
    changes = not plan.is_empty or plan.definition != plan.from_definition
    return errors.CHANGES if args.exit_code and changes else errors.DONE


def _show(cloud: Cloud, args: argparse.Namespace, out: Output) -> int:
    from tools import plan_files
    from tools.showing import plan_as_dict, show_plan

    plan, signer = plan_files.read(cloud, args.show)
    if args.output:
        plan_files.write(cloud, plan, args.output, signed=args.sign)
    if out.as_json:
        out.json({**plan_as_dict(plan, {}), "signer": signer})
    else:
        show_plan(plan, {}, out)
        out.line(f"signed by {signer}" if signer else "not signed")
    return errors.DONE


def _reverse(cloud: Cloud, args: argparse.Namespace, out: Output) -> int:
    from deployer.history import release
    from deployer.planning.plan import plan_digest
    from deployer.planning.planners import astray
    from deployer.planning.planning import definition_before
    from deployer.planning.reverse import reverse
    from tools import plan_files

    plan, _ = plan_files.read(cloud, args.reverse)
    newest = release.head(cloud.store, cloud.ref)
    if newest is None or newest.release.plan != plan_digest(plan):
        raise errors.UsageError(
            f"{shown_path(args.reverse)} is not the plan of the newest release of {cloud.ref!r}",
            hint="`lowcloud rollback` goes back from anywhere",
        )
    before = definition_before(cloud.store, plan)
    back = reverse(plan, definition=before.digest, from_release=newest.digest)
    if drifted := astray(back, before.definition):
        raise errors.UsageError(
            f"before this plan {', '.join(drifted)} did not run what the definition of then says; the way back would "
            "lead there again",
            hint="`lowcloud rollback` goes back to that definition",
        )
    return _tell(cloud, back, {}, args, out)


def _compare(cloud: Cloud, survey: _Survey, args: argparse.Namespace, out: Output) -> int:
    from deployer.planning.comparison import cost_of
    from deployer.planning.planners import names
    from tools.deploying import probation_s
    from tools.showing import show_costs

    sizes, links = survey.sizes(cloud), _links(args)
    plans = [survey.start.plan(name, probation_s=probation_s(args)) for name in names()]
    costs = [cost_of(plan, sizes, links) for plan in plans]
    if out.as_json:
        out.json({"to": survey.start.following.digest, "link": links.bytes_per_s, "planners": costs})
    else:
        show_costs(costs, links, out)
    return errors.DONE


def _simulate(cloud: Cloud, survey: _Survey, args: argparse.Namespace, out: Output) -> int:
    from deployer.planning.simulate import simulate
    from tools.showing import show_simulated, simulated_as_dict

    result = simulate(
        survey.plan,
        survey.start.observed,
        cloud.store,
        survey.lacking,
        fail=args.fail,
        seed=args.seed,
        links=_links(args),
    )
    if out.as_json:
        out.json(simulated_as_dict(survey.plan, result))
    else:
        show_simulated(result, out)
    return errors.DONE
