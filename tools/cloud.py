"""Which cloud a command is about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from deployer.cloud.cloud import Cloud


def open_cloud(args: argparse.Namespace) -> Cloud:
    """The cloud of `-C` (or LOWCLOUD_DIR), otherwise of the nearest directory upwards, with the overlay of `-e`."""
    from deployer.cloud.cloud import NAME, Cloud

    if args.overlay is not None and not NAME.fullmatch(args.overlay):
        from tools.errors import UsageError

        raise UsageError(
            f"no overlay can be called {args.overlay!r}", hint="lower-case letters, digits and hyphens, a letter first"
        )
    cloud = Cloud.open(Path(args.directory) if args.directory else Path.cwd())
    cloud.overlay = args.overlay
    cloud.on_stale = _StaleHistory(as_json=args.json)
    return cloud


class _StaleHistory:
    """Says on stderr, once, that what is shown may be out of date; with --json as an object like an error's."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._said = False

    def __call__(self, error: Exception, age_s: float) -> None:
        if self._said:
            return
        self._said = True
        import sys

        from tools.output import ago, printable

        text = f"the history is shown as it was {ago(age_s)} ago, because {printable(str(error))}"
        if self._as_json:
            import json

            warning = {"kind": type(error).__name__, "message": text, "age_s": round(age_s, 3)}
            print(json.dumps({"warning": warning}), file=sys.stderr)
        else:
            print(f"warning: {text}", file=sys.stderr)


def blob_name(cloud: Cloud, path: Path) -> str:
    """What the store calls the versions of a file: its path below the cloud's directory, the whole path elsewhere."""
    absolute = Path(os.path.realpath(path))
    try:
        return absolute.relative_to(cloud.root.resolve()).as_posix()
    except ValueError:
        return absolute.as_posix()


def shown_path(path: str | Path) -> str:
    """A path as text, also where its bytes are not UTF-8."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
