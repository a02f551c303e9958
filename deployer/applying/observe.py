"""What the hosts say they run: the one source of what is, as opposed to what should be.

`Observed` is plain data, so that planners and the comparison with a definition stay pure; `observe` asks all hosts at
once and never fails for one that does not answer: who needs all of them looks at `unreachable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from agent.api.facts import HostFacts, ProcessState, ProcessStatus
from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import Digest

if TYPE_CHECKING:
    from agent.client.client import AgentClient
    from deployer.applying.fleet import Fleet
    from deployer.language.schema import Definition


class Running(msgspec.Struct, frozen=True):
    """A process as its host tells of it."""

    spec: ProcessSpec
    digest: Digest
    """Of the specification."""
    state: ProcessState = ProcessState.RUNNING
    release: Digest | None = None
    reason: str = ""
    starts: int = 0
    """In a row, without a good run since."""


class HostState(msgspec.Struct, frozen=True):
    processes: dict[str, Running] = {}
    volumes: dict[str, int] = {}
    """Size in bytes by name."""


class Observed(msgspec.Struct, frozen=True):
    """What is, by host."""

    hosts: dict[str, HostState] = {}
    unreachable: dict[str, str] = {}
    """Hosts that did not answer, and why. What they run is not known."""
    facts: dict[str, HostFacts] = {}
    statuses: dict[str, tuple[ProcessStatus, ...]] = {}

    def state(self) -> dict[str, dict[str, Digest]]:
        """Host, process, digest of its specification, for every host that answered."""
        return {
            host: {name: running.digest for name, running in sorted(state.processes.items())}
            for host, state in sorted(self.hosts.items())
        }


def running(spec: ProcessSpec) -> Running:
    """This specification, up and well."""
    return Running(spec, spec_digest(spec))


def assume(definition: Definition | None) -> Observed:
    """What hosts that run exactly this definition would say: for a plan that is made without asking them."""
    from deployer.resolving.specs import specs_of, volumes_of

    if definition is None:
        return Observed()
    volumes = volumes_of(definition)
    return Observed(
        {
            host: HostState({name: running(spec) for name, spec in specs.items()}, volumes[host])
            for host, specs in specs_of(definition).items()
        }
    )


async def observe(fleet: Fleet, hosts: Iterable[str] | None = None) -> Observed:
    """Ask these hosts (default: all of the fleet), side by side, what they are and what they run."""
    answers = await fleet.each(fleet.hosts if hosts is None else hosts, _ask)
    states, facts, statuses = {}, {}, {}
    for host, (told, processes) in answers.results.items():
        facts[host] = told
        statuses[host] = processes
        states[host] = HostState(
            {status.process: _running(status) for status in processes},
            {volume.volume: volume.size_bytes for volume in told.volumes},
        )
    return Observed(states, {host: str(error) for host, error in answers.failures.items()}, facts, statuses)


def _running(status: ProcessStatus) -> Running:
    starts = 0 if status.troubles is UNSET else status.troubles.starts
    return Running(status.spec, status.spec_digest, status.state, status.release, status.reason, starts)


async def _ask(client: AgentClient) -> tuple[HostFacts, tuple[ProcessStatus, ...]]:
    report = await client.report()
    return report.host, report.processes
