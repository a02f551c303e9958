"""`diff`: what differs between two releases, or between a release and a definition file, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import printable

if TYPE_CHECKING:
    import argparse

    from deployer.cloud.cloud import Cloud
    from deployer.language.schema import Definition
    from tools.output import Output

EXAMPLE = """
lowcloud diff 8d2f01aa 41c7be90
lowcloud diff prod cloud.toml
lowcloud diff 8d2f01aa prod --json
lowcloud diff -e staging staging cloud.toml    # the overlay's history against its files
"""


def configure(parser: argparse.ArgumentParser) -> None:
    what = "a release's hash, the ref's name for the newest release, or a definition file"
    parser.add_argument("a", metavar="A", help=what)
    parser.add_argument("b", metavar="B", help="the same")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.language.wording import dotted
    from deployer.resolving.difference import differences

    with open_cloud(args) as cloud:
        changes = differences(_definition(cloud, args.a, out), _definition(cloud, args.b, out))
    if out.as_json:
        out.json(
            [
                {"path": dotted(one.path), "change": str(one.change), "before": one.before, "after": one.after}
                for one in changes
            ]
        )
    for one in changes:
        out.line(f"{one.change!s:<8} {printable(str(one))}")
    if not changes:
        out.remark("no difference")
    return errors.DONE


def _definition(cloud: Cloud, text: str, out: Output) -> Definition:
    from deployer.history import release

    if text == cloud.ref:
        link = release.head(cloud.store, cloud.ref)
        if link is None:
            raise errors.UsageError(f"nothing has been released on {text!r} yet", hint="`lowcloud apply` does")
        return release.read_definition(cloud.store, link.release.definition)
    if Path(text).is_file():
        from tools.deploying import resolved_file

        return resolved_file(cloud, text, out).definition
    return release.read_definition(cloud.store, release.find(cloud.store, cloud.ref, text).release.definition)
