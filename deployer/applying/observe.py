"""What the hosts say they run: the one source of what is, as opposed to what should be.

`Observed` is plain data, so that planners and the comparison with a definition stay pure; `observe` asks all hosts at
once and never fails for one that does not answer: who needs all of them looks at `unreachable`.

**Undecided.** A host that was frozen, or cut off, while it was called goes on with that call when it is back, whoever
has given it up meanwhile; so does one that another operator has just called. What such a host runs now says little of
what it will run: who plans, or says how a plan has ended, waits until it is decided (`observe_decided`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from agent.api.facts import HostFacts, HostReport, ProcessState, ProcessStatus
from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import Digest

if TYPE_CHECKING:
    from agent.client.client import AgentClient
    from deployer.applying.fleet import Fleet
    from deployer.applying.progress import Progress
    from deployer.language.schema import Definition

UNDECIDED_S: Final = 60.0
"""How long a host is waited for that is in the middle of somebody's call."""
LOOK_AGAIN_S: Final = 0.25
MAX_ABOUT_CHARS: Final = 200


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
    undecided: dict[str, tuple[str, ...]] = {}
    """Hosts that are in the middle of a call, and what it is about."""

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
    reports = answers.results
    return Observed(
        {host: _state(report) for host, report in reports.items()},
        {host: str(error) for host, error in answers.failures.items()},
        {host: report.host for host, report in reports.items()},
        {host: report.processes for host, report in reports.items()},
        {host: report.undecided for host, report in reports.items() if report.undecided is not UNSET},
    )


async def observe_decided(fleet: Fleet, hosts: Iterable[str], progress: Progress) -> Observed:
    """As `observe`, as soon as none of the hosts is in the middle of a call. One that still is after `UNDECIDED_S`
    counts as unreachable: nobody knows what it will run."""
    clock = asyncio.get_running_loop().time
    gives_up = clock() + UNDECIDED_S
    observed = await observe(fleet, hosts)
    if observed.undecided:
        progress.phase("undecided", len(observed.undecided))
    while observed.undecided and clock() < gives_up:
        await asyncio.sleep(LOOK_AGAIN_S)
        observed = _together(_without(observed, observed.undecided), await observe(fleet, observed.undecided))
    why = {host: _still(about) for host, about in observed.undecided.items()}
    return _together(_without(observed, why), Observed(unreachable=why))


def _still(about: tuple[str, ...]) -> str:
    what = ", ".join(about)[:MAX_ABOUT_CHARS]
    return f"it is still in the middle of an earlier call after {UNDECIDED_S:.0f} s: {what}"


def _without(observed: Observed, hosts: Collection[str]) -> Observed:
    fields = {name: getattr(observed, name) for name in Observed.__struct_fields__}
    kept = {name: {host: told for host, told in of.items() if host not in hosts} for name, of in fields.items()}
    return Observed(**kept)


def _together(some: Observed, others: Observed) -> Observed:
    return Observed(**{name: getattr(some, name) | getattr(others, name) for name in Observed.__struct_fields__})


def _state(report: HostReport) -> HostState:
    return HostState(
        {status.process: _running(status) for status in report.processes},
        {volume.volume: volume.size_bytes for volume in report.host.volumes},
    )


def _running(status: ProcessStatus) -> Running:
    starts = 0 if status.troubles is UNSET else status.troubles.starts
    return Running(status.spec, status.spec_digest, status.state, status.release, status.reason, starts)


async def _ask(client: AgentClient) -> HostReport:
    return await client.report()
