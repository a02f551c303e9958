"""`demo`: all of it on this machine, with real agents, real guests and real load. Cleans up after itself.

With `--dir` the directory stays, with `--keep` what runs stays too. Fails if any request failed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.ending import ending_on_signals, undisturbed

if TYPE_CHECKING:
    import argparse

    from tools.output import Output

EXAMPLE = """
lowcloud demo
lowcloud demo --dir /tmp/try --keep
lowcloud demo --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, metavar="DIR", help="make the cloud here (default: a temporary directory)")
    parser.add_argument("--keep", action="store_true", help="leave it running, and say what to try next")


def run(args: argparse.Namespace, out: Output) -> int:
    from tools.demo import Demo

    temporary = args.dir is None
    with ending_on_signals():
        directory = Path(tempfile.mkdtemp(prefix="lowcloud-demo-")) if temporary else args.dir.absolute()
        demo = Demo(directory, out)
        keep = False
        try:
            demo.run()
            if out.as_json:
                out.json(demo.result())
            if args.keep:
                keep = True
                demo.what_next()
            return errors.DONE if demo.went_well else errors.FAILED
        finally:
            with undisturbed():
                if not keep:
                    demo.stop()
                demo.close()
                if temporary and not keep:
                    shutil.rmtree(directory, ignore_errors=True)
