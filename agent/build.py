"""Which build of lowcloud a process runs: what an upgrade on disk changes, and a process that goes on running has not.

The supervisor and its zygote outlive the agent, so after an upgrade they may be of another build than it, with another
engine, which could not load what the agent compiles.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Final

PACKAGE: Final = "lowcloud"
ENGINE: Final = "wasmtime"


def version_of(package: str) -> str:
    """The version of an installed package; "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def build() -> str:
    """As text, such as `lowcloud 0.1.0, wasmtime 50.0.1`; as it was when it was first asked for."""
    return ", ".join(f"{package} {version_of(package)}" for package in (PACKAGE, ENGINE))
