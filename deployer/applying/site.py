"""What every operation on a cloud's hosts needs, in one hand: history, connections, who asks, and who watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deployer.applying.fleet import Fleet
from deployer.applying.progress import Progress, Quiet
from deployer.history.release import ReleaseStore


class Site(NamedTuple):
    store: ReleaseStore
    ref: str
    fleet: Fleet
    by: str
    """The name in the operator's certificate, such as `operator:ada` (`trust.common_name`)."""
    progress: Progress = Quiet()
    now_ns: Callable[[], int] = time.time_ns
    """Nanoseconds since 1970, for the times of releases."""
    credentials: Path | None = None
    """The operator's directory, to sign with; None where nothing is to be signed, as in a simulation."""
