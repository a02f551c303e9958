"""`operator`: how another person, on another machine, becomes an operator of this cloud.

A new operator gets one file: a key, a certificate, the authority's certificate and the settings. `add` makes it here, a
person carries it there, `enroll` opens it into a new directory. The certificate authority stays where it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud operator add grace -o grace.bundle
lowcloud operator enroll grace.bundle shop      # on the other machine
lowcloud operator reader prometheus -o /etc/prometheus/lowcloud
"""


def configure(parser: argparse.ArgumentParser) -> None:
    import argparse

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make the bundle of a new operator: key, certificate and settings")
    add.add_argument("name", metavar="NAME")
    add.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: NAME.bundle here")
    enroll = actions.add_parser("enroll", help="open a bundle into a new directory, which then is this cloud")
    enroll.add_argument("bundle", metavar="FILE", type=Path)
    enroll.add_argument("dir", nargs="?", metavar="DIR", type=Path, help="default: -C, or this one")
    reader = actions.add_parser("reader", help="make credentials that may look at hosts and change nothing")
    reader.add_argument("name", metavar="NAME")
    reader.add_argument("-o", "--output", metavar="DIR", type=Path, help="default: NAME.reader here")
    for action in (add, enroll, reader):
        action.add_argument("-C", dest="directory", metavar="DIR", default=argparse.SUPPRESS, help="the cloud")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(args: argparse.Namespace, out: Output) -> int:
    return {"add": _add, "enroll": _enroll, "reader": _reader}[args.action](args, out)


def _add(args: argparse.Namespace, out: Output) -> int:
    from deployer.cloud.operators import operator_bundle

    with open_cloud(args) as cloud:
        path = args.output or Path(f"{args.name}.bundle")
        if path.exists():
            raise errors.UsageError(f"{shown_path(path)} exists", hint="remove it, or name another file with -o")
        operator_bundle(cloud, args.name, path)
        if not cloud.is_shared:
            out.remark(
                "note: history and blobs of this cloud are in this directory only; `lowcloud migrate` shares them"
            )
    if out.as_json:
        out.json({"operator": args.name, "bundle": shown_path(path)})
    out.line(f"{shown_path(path)} makes its holder an operator; it holds a private key: carry it there, then delete it")
    out.line("there:")
    out.line(f"  lowcloud operator enroll {path.name} DIR")
    return errors.DONE


def _reader(args: argparse.Namespace, out: Output) -> int:
    from deployer.cloud import trust

    to = args.output or Path(f"{args.name}.reader")
    if to.exists():
        raise errors.UsageError(f"{shown_path(to)} exists", hint="remove it, or name another directory with -o")
    with open_cloud(args) as cloud:
        trust.issue_reader(cloud.authority, args.name, to)
    if out.as_json:
        out.json({"reader": args.name, "credentials": shown_path(to)})
    out.line(f"{shown_path(to)} has ca.pem, cert.pem and key.pem: their holder may look at hosts and change nothing")
    return errors.DONE


def _enroll(args: argparse.Namespace, out: Output) -> int:
    from deployer.cloud.operators import enroll_operator

    root = args.dir or Path(args.directory or ".")
    bundle = enroll_operator(args.bundle, root)
    if out.as_json:
        out.json({"operator": bundle.operator, "root": shown_path(root.absolute())})
    out.line(f"{shown_path(root)} is this cloud for {bundle.operator}; delete {shown_path(args.bundle)} now")
    out.line("next: `lowcloud history`")
    return errors.DONE
