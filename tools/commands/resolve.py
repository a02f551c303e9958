"""`resolve`: every name in the definition becomes a hash, and the lock file says which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path
from tools.output import size

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud resolve
lowcloud resolve -e staging             # shop.staging.toml over shop.toml, into shop.staging.lock
lowcloud resolve shop.toml --check      # in CI: fails if lowcloud.lock is out of date
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="the definition (default: as lowcloud.toml says)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the lock file is out of date")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.language.problems import DefinitionInvalid
    from deployer.resolving import lock
    from deployer.resolving.canonical import version_of
    from tools.deploying import resolved_file

    with open_cloud(args) as cloud:
        path = lock.lock_path(Path(args.file) if args.file else cloud.definition_path, cloud.overlay)
        try:
            before = lock.read(path)
        except DefinitionInvalid:
            before = None
        resolved = resolved_file(cloud, args.file, out, writing=True)
        definition = version_of(resolved.definition)
    current = before == resolved.lock
    if not args.check:
        lock.write(path, resolved.lock)
    if out.as_json:
        out.json(
            {
                "definition": definition,
                "lock": shown_path(path),
                "changed": not current,
                "blobs": [
                    {
                        "name": name,
                        "hash": one.digest,
                        "size": one.size,
                        "kind": one.kind,
                        "imports": one.imports,
                        "base": one.base,
                    }
                    for name, one in sorted(resolved.lock.blob.items())
                ],
                "secrets": [
                    {"name": name, "host": host, "hash": digest}
                    for name, sealed in sorted(resolved.lock.secret.items())
                    for host, digest in sorted(sealed.items())
                ],
            }
        )
    rows = [(one.digest, one.kind, size(one.size), name) for name, one in sorted(resolved.lock.blob.items())]
    out.table(("HASH", "KIND", "SIZE", "NAME"), rows, right=("SIZE",))
    out.line(f"definition {definition}")
    if args.check and not current:
        raise errors.CommandError(f"{shown_path(path)} is out of date", hint="write it with `lowcloud resolve`")
    return errors.DONE
