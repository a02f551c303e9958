"""`fmt`: the definition's files in the one canonical layout, comments and all."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from tools.output import Output

EXAMPLE = """
lowcloud fmt                            # the definition, what it includes, and its overlays
lowcloud fmt regions/eu.toml
lowcloud fmt --check                    # in CI: changes nothing, fails where something would
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="default: all files of the cloud's definition")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is laid out otherwise")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.language.layout import laid_out
    from deployer.language.sources import text_in

    changed = []
    for path in [Path(file) for file in args.files] or _files_of_definition(args):
        before = text_in(path)
        after = laid_out(before, path)
        if after != before:
            changed.append(path)
            if not args.check:
                _write(path, after)
    if out.as_json:
        out.json({"changed": [shown_path(path) for path in changed], "written": not args.check})
    for path in changed:
        out.line(shown_path(path))
    if changed and args.check:
        raise errors.CommandError(_laid_out_otherwise(changed), hint="`lowcloud fmt` writes the one layout")
    return errors.DONE


def _files_of_definition(args: argparse.Namespace) -> Iterable[Path]:
    from deployer.language import sources

    with open_cloud(args) as cloud:
        path = cloud.definition_path
    read = sources.read(path)
    overlays = [sources.overlay_path(path, name) for name in sources.overlays_of(path)]
    return [*(source.path for source in read.files), *overlays]


def _write(path: Path, text: str) -> None:
    from deployer.cloud.files import write_file

    file = path.resolve()  # where the name is a link, it stays one
    write_file(file, text.encode(), mode=stat.S_IMODE(file.stat().st_mode))


def _laid_out_otherwise(paths: list[Path]) -> str:
    shown = ", ".join(map(shown_path, paths))
    return f"{shown} {'is' if len(paths) == 1 else 'are'} laid out otherwise"
