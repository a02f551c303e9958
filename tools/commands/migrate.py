"""`migrate`: the history, the blobs or both move to another engine, and `lowcloud.toml` with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import counted, printable

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud migrate --refs etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/shop --blobs s3://lowcloud/shop
lowcloud migrate --refs lmdb --blobs lmdb
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--refs", metavar="URL", help="where the history goes: etcd://HOST:PORT,HOST:PORT/NAME or lmdb")
    parser.add_argument("--blobs", metavar="URL", help="where blobs go: s3://BUCKET/PREFIX or lmdb")


def run(args: argparse.Namespace, out: Output) -> int:
    from deployer.cloud.migrate import migrate

    if args.refs is None and args.blobs is None:
        raise errors.UsageError("nothing says where to", hint="give --refs, --blobs or both")
    with open_cloud(args) as cloud:
        refs, blobs = args.refs or cloud.config.refs, args.blobs or cloud.config.blobs
        with out.progress("migrate", unit="blobs") as progress:
            migrated = migrate(cloud, refs=refs, blobs=blobs, tell=lambda _, done, total: progress(done, total))
    if out.as_json:
        out.json(
            {
                "refs": refs,
                "blobs": blobs,
                "heads": migrated.refs,
                "verified_blobs": migrated.blobs,
                "skipped": migrated.skipped,
            }
        )
    for digest, why in migrated.skipped.items():
        out.remark(f"left behind, because it is damaged and no history needs it: {digest}: {printable(why)}")
    out.line(
        f"history at {refs}, blobs at {blobs}: {len(migrated.refs)} refs, {counted(migrated.blobs, 'blob')} verified"
    )
    return errors.DONE
