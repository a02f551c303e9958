"""`plan`: what an apply would do, and because of which field. Nothing on any host changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud plan
lowcloud plan shop.toml --planner rolling -o shop.plan
lowcloud plan --exit-code --json        # 3 if something would change
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.deploying import add_definition_arguments

    parser.add_argument("file", nargs="?", metavar="FILE", help="the definition (default: as lowcloud.toml says)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the plan here, for `lowcloud apply`")
    parser.add_argument("--exit-code", action="store_true", help="end with 3 if something would change")
    add_definition_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    import asyncio

    from deployer import plan as plans
    from tools.deploying import planned, version_of_file
    from tools.showing import plan_as_dict, show_plan

    with open_cloud(args) as cloud:
        version = version_of_file(cloud, args.file, out, locked=args.locked)
        work = planned(cloud, version, args.planner, allow_unreachable=args.allow_unreachable)
        plan, sizes = asyncio.run(work)
    if args.output:
        args.output.write_bytes(plans.encode(plan))
    if out.as_json:
        out.json(plan_as_dict(plan, sizes))
    else:
        show_plan(plan, sizes, out)
        if args.output:
            out.line(f"written to {shown_path(args.output)}; carry it out with `lowcloud apply {args.output}`")
    changes = not plan.is_empty or plan.definition != plan.from_definition
    return errors.CHANGES if args.exit_code and changes else errors.DONE
