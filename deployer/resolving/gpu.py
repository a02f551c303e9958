"""The reserved field `gpu`: a definition may ask for a GPU, and no plan is made where no host could give one.

Pure. A host that can give one will say so in its table of guarantees; agents of this version never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.api.facts import HostFacts
from deployer.errors import BadInput
from deployer.language.schema import Definition

GUARANTEE: Final = "gpu"
"""The row of a host's table of guarantees that says so."""
NONE: Final = "none"
MAX_SHOWN: Final = 10


class GpuNotOffered(BadInput):
    hint = 'leave `gpu` out, or write gpu = "none"; `lowcloud host show` lists what a host guarantees'


def require_gpus(definition: Definition, facts: Mapping[str, HostFacts]) -> None:
    """Raises GpuNotOffered where a process asks for a GPU on a host that answered and offers none."""
    offering = {host for host, told in facts.items() if any(g.name == GUARANTEE and g.given for g in told.guarantees)}
    lacking = [
        f"process.{name}.gpu: {process.gpu} is asked for, but host {host} offers no GPU"
        for name, process in sorted(definition.process.items())
        if process.gpu != NONE
        for host in process.hosts
        if host in facts and host not in offering
    ]
    if lacking:
        more = f"\n… and {len(lacking) - MAX_SHOWN} more" if len(lacking) > MAX_SHOWN else ""
        raise GpuNotOffered("\n".join(lacking[:MAX_SHOWN]) + more)
