"""The field `require`: what a process needs of its hosts' sandbox, held against what the hosts say they give.

Pure. A host that cannot keep a promise is not given the process; the definition is refused, never weakened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.api.facts import HostFacts
from deployer.errors import BadInput
from deployer.language.schema import Definition

MAX_SHOWN: Final = 10


class GuaranteeNotGiven(BadInput):
    hint = "give the host what is missing (`lowcloud host show`), choose another, or take it out of `require`"


def require_guarantees(definition: Definition, facts: Mapping[str, HostFacts]) -> None:
    """Raises GuaranteeNotGiven where a process requires what a host that answered does not give as a hard one."""
    tables = {host: {row.name: row for row in told.guarantees} for host, told in facts.items()}
    lacking = []
    for name, process in sorted(definition.process.items()):
        for host in process.hosts:
            for promise in process.require:
                row = tables[host].get(promise) if host in tables else None
                if host in tables and not (row and row.given):
                    why = (
                        f"is {row.strength if row.soft else 'not given'} there: {row.how}"
                        if row
                        else "is unknown there"
                    )
                    lacking.append(f"process.{name}.require: {promise} on host {host} {why}")
    if lacking:
        more = f"\n… and {len(lacking) - MAX_SHOWN} more" if len(lacking) > MAX_SHOWN else ""
        raise GuaranteeNotGiven("\n".join(lacking[:MAX_SHOWN]) + more)
