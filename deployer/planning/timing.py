"""How long things take, for estimates and simulations: constants that were measured, and what a person says of the
links.

The constants are medians on one machine (docs/performance.md, "Calls"); a guest that needs long to get ready, or has
connections that last, takes longer. They are good for comparing plans, not for promising a time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.api.processes import ProcessSpec
from deployer.planning.plan import Kind

CALL_S: Final = {
    Kind.CREATE_VOLUME: 0.025,
    Kind.START: 0.08,
    Kind.REPLACE: 0.28,
    Kind.CONFIGURE: 0.26,
    Kind.RESIZE: 0.025,
    Kind.STOP: 0.035,
}
"""From a call to its answer, on the host."""
STAGE_S: Final = 0.01
"""Staging what is compiled already."""
COMPILE_S_PER_BYTE: Final = 0.7e-6
"""Processor time per byte of a binary that a host has never compiled."""


class Links(NamedTuple):
    """Between the deployer and each host."""

    bytes_per_s: float = 12.5e6
    round_trip_s: float = 0.02


def compile_s(binary_bytes: int) -> float:
    return binary_bytes * COMPILE_S_PER_BYTE


def patience_s(spec: ProcessSpec) -> float:
    """How long a host waits for this process to get ready before it gives up."""
    return spec.ready.within_s if spec.ready else NO_READINESS_S


NO_READINESS_S: Final = 1.0
"""A guest without a readiness rule is watched so long."""
