"""Which cloud a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from deployer.cloud import Cloud


def open_cloud(args: argparse.Namespace) -> Cloud:
    """The cloud of `-C` (or LOWCLOUD_DIR), otherwise of the nearest directory upwards."""
    from deployer.cloud import Cloud

    return Cloud.open(Path(args.directory) if args.directory else Path.cwd())


def blob_name(cloud: Cloud, path: Path) -> str:
    """What the store calls the versions of a file: its path below the cloud's directory, the whole path elsewhere."""
    absolute = path.resolve()
    try:
        return absolute.relative_to(cloud.root.resolve()).as_posix()
    except ValueError:
        return absolute.as_posix()


def shown_path(path: str | Path) -> str:
    """A path as text, also where its bytes are not UTF-8."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
