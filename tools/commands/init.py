"""`init`: the directory of a new cloud, with a store, a certificate authority and an operator's key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import shown_path

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud init
lowcloud init shop --operator alice
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", nargs="?", metavar="DIR", help="the directory (default: -C, or this one)")
    parser.add_argument("--operator", metavar="NAME", help="who you are in certificates and releases (default: login)")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.cloud.cloud import Cloud

    root = Path(args.dir or args.directory or ".")
    with Cloud.create(root, operator=args.operator) as cloud:
        if out.as_json:
            out.json(
                {
                    "root": shown_path(cloud.root),
                    "store": shown_path(cloud.store_path),
                    "authority": shown_path(cloud.authority),
                    "definition": shown_path(cloud.definition_path),
                    "ref": cloud.ref,
                }
            )
        out.line(f"made a cloud in {shown_path(cloud.root)}")
        out.line(f"  {shown_path(cloud.authority)} is its certificate authority: keep it secret, and back it up")
        if not cloud.definition_path.exists():
            out.line(f"next: write {shown_path(cloud.definition_path)}, then `lowcloud up` or `lowcloud plan`")
    return errors.DONE
