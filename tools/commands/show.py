"""`show`: the definition as one, whatever files it is written in, and where each of its values comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from deployer.language.provenance import Shown
    from tools.output import Output

EXAMPLE = """
lowcloud show -e staging                # the definition with its overlay
lowcloud show --why                     # each value with file and line, defaults too
lowcloud show --resolved --why process.web
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("only", nargs="*", metavar="KEY", help="only what is below these keys: process.web, host")
    parser.add_argument("-f", "--file", metavar="FILE", help="the definition (default: as lowcloud.toml says)")
    parser.add_argument("--resolved", action="store_true", help="every name as its hash, every default written out")
    parser.add_argument("--why", action="store_true", help="each value with where it comes from, defaults too")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.language import definition
    from deployer.language.provenance import as_toml, values_of
    from deployer.language.wording import dotted
    from tools.deploying import resolved_file

    with open_cloud(args) as cloud:
        parsed = definition.load(Path(args.file) if args.file else cloud.definition_path, cloud.overlay)
        resolved = resolved_file(cloud, args.file, out) if args.resolved else None
    values = list(_wanted(values_of(parsed.definition, parsed.sources, resolved), args.only))
    if not values and args.only:
        raise errors.UsageError(f"the definition has nothing below {', '.join(args.only)}")
    if out.as_json:
        out.json(
            [
                {
                    "path": dotted(one.path),
                    "value": one.value,
                    "file": one.file or None,
                    "line": one.line or None,
                    "column": one.column or None,
                    "default": one.is_default,
                    "origin": one.origin,
                }
                for one in values
                if one.text
            ]
        )
    whole = args.why or args.resolved
    for line in as_toml((one for one in values if whole or not one.is_default), why=args.why):
        out.line(printable(line))
    return errors.DONE


def _wanted(values: Iterator[Shown], only: list[str]) -> Iterator[Shown]:
    from deployer.language.sources import key_path

    starts = [key_path(text) for text in only]
    for text, start in zip(only, starts, strict=True):
        if not start:
            raise errors.UsageError(f"{text!r} is not a key", hint="write it as TOML does: process.web.env")
    for one in values:
        if not starts or any(one.path[: len(start)] == start for start in starts):
            yield one
