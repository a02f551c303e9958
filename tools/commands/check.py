"""`check`: every blob of the store is read and compared with its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud
from tools.output import size

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud check
lowcloud check --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    del parser  # no arguments of its own


def run(args: argparse.Namespace, out: Output) -> int:
    with open_cloud(args) as cloud, out.progress("check", unit="blobs") as progress:
        checked = cloud.store.check(progress=progress)
    if out.as_json:
        out.json({"blobs": checked.blobs, "bytes": checked.bytes, "damaged": checked.damaged})
    else:
        out.line(f"{checked.blobs} blobs verified, {size(checked.bytes)}; {len(checked.damaged)} damaged")
        for damage in checked.damaged:
            out.line(f"  {damage.digest}  {damage.reason}{' (repaired)' if damage.repaired else ''}")
    unrepaired = [damage for damage in checked.damaged if not damage.repaired]
    if unrepaired:
        out.remark("push the same files again to repair them")
    return errors.FAILED if unrepaired else errors.DONE
