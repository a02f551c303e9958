"""What would happen if a plan were carried out: the real apply, against a model of the hosts, with failures by seed.

Nothing here decides anything: which call comes when, what is tried again, when a plan stops, who goes back and what is
told in the end is `deployer.applying.apply` and `deployer.applying.execute` themselves. Only the hosts, the clock and
the store's writes are made up: the hosts begin with what the real ones report and with the blobs that they really lack,
an hour passes in a moment, and nothing is written outside of memory. The same plan, seed and failures give the same
history.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from cas.digest import Digest
from cas.errors import BlobMissing
from cas.exchange import cost
from cas.interface import BlobStat, ExchangeStore
from cas.memory import MemoryStore
from deployer.applying.apply import apply
from deployer.applying.fleet import Fleet
from deployer.applying.observe import HostState, Observed
from deployer.applying.outcome import Applied, HostEnd
from deployer.applying.progress import Phase
from deployer.applying.site import Site
from deployer.applying.transfer import Lack
from deployer.errors import DeployerError
from deployer.planning.plan import Plan, Step
from deployer.planning.simulate import clock
from deployer.planning.simulate.failures import Failure, draw
from deployer.planning.simulate.hosts import ModelClient, ModelHost
from deployer.planning.timing import Links

REF: Final = "simulated"


class Happening(msgspec.Struct, frozen=True):
    """One line of the history."""

    at_s: float
    what: str


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """What would have happened."""

    failures: tuple[Failure, ...]
    history: tuple[Happening, ...]
    outcome: str
    """As of an apply (`applied`, `reverted`, …); `refused` where it would have stopped before it touched anything."""
    exit_code: int
    seconds: float
    hosts: dict[str, HostEnd]
    """Every host that the plan calls, and what it would report in the end."""
    trouble: str = ""
    applied: Applied | None = None


def simulate(
    plan: Plan,
    observed: Observed,
    store: ExchangeStore,
    lacking: Mapping[str, Lack],
    *,
    fail: Iterable[str] = (),
    seed: int | None = None,
    links: Links | None = None,
    by: str = "",
) -> Simulated:
    """Carry a plan out against the model. `observed`: what the hosts run; `lacking`: what each lacks of the plan's
    blobs (`transfer.lacks`); `store` is only read. Raises BadInput for failures that do not fit the plan."""
    texts = list(fail)
    links = links or Links()
    smooth = _Run(plan, observed, store, lacking, (), 0, links, by)
    result = smooth.result()
    if texts or seed is not None:
        failures = draw(plan, texts, seed=seed, length_s=result.seconds)
        result = _Run(plan, observed, store, lacking, failures, seed or 0, links, by).result()
    return result


class _Run:
    """One simulation."""

    def __init__(
        self,
        plan: Plan,
        observed: Observed,
        store: ExchangeStore,
        lacking: Mapping[str, Lack],
        failures: tuple[Failure, ...],
        seed: int,
        links: Links,
        by: str,
    ) -> None:
        self._plan = plan
        self._failures = failures
        self._by = by
        self._history: list[Happening] = []
        self._store = _Scratch(store, plan)
        self._hosts = {
            name: ModelHost(
                name,
                observed.hosts.get(name, HostState()),
                lacking.get(name, Lack((), ())),
                links,
                [failure for failure in failures if failure.host == name],
                random.Random(f"{seed} {name}"),
                self.tell,
            )
            for name in plan.hosts()
        }

    def result(self) -> Simulated:
        applied, error = clock.run(self._apply())
        seconds = self._history[-1].at_s
        if applied is None:
            hosts = dict.fromkeys(self._plan.hosts(), HostEnd.OLD)
            outcome, exit_code, trouble = "refused", error.exit_code if error else 1, str(error)
        else:
            hosts, outcome, exit_code, trouble = applied.hosts, str(applied.outcome), applied.exit_code, applied.trouble
        return Simulated(
            failures=self._failures,
            history=tuple(self._history),
            outcome=outcome,
            exit_code=exit_code,
            seconds=seconds,
            hosts=hosts,
            trouble=trouble,
            applied=applied,
        )

    async def _apply(self) -> tuple[Applied | None, DeployerError | None]:
        fleet = Fleet(dict.fromkeys(self._hosts, "model"), Path(), connect=self._connect)
        applied, error = None, None
        async with fleet:
            site = Site(self._store, REF, fleet, self._by, self, lambda: int(clock.now_s() * 1e9))
            try:
                applied = await apply(site, self._plan, message="a simulation")
            except DeployerError as refusal:
                error = refusal
            self.tell(f"refused: {error}" if error else f"{applied.outcome}" if applied else "")
        return applied, error

    def _connect(self, host: str, address: str) -> ModelClient:
        del address
        return ModelClient(
            self._hosts[host],
            lambda lack: cost(self._store, lack.missing, lack.bases) if lack.missing else 0,
            lambda digest: self._store.stat(digest).size,
        )

    # --- as a `deployer.applying.progress.Progress` ---

    def tell(self, what: str) -> None:
        self._history.append(Happening(round(clock.now_s(), 3), what))

    def phase(self, phase: Phase, hosts: int) -> None:
        if hosts or phase == "release":
            on = f", {hosts} {'host' if hosts == 1 else 'hosts'}" if hosts else ""
            self.tell(f"{phase}{on}")

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:
        if done_bytes == total_bytes:
            self.tell(f"{host} has its {total_bytes} bytes")

    def step(self, step: Step, state: Literal["begins", "done", "failed"], detail: str = "") -> None:
        why = f": {detail}" if detail else ""
        self.tell(f"{step.kind} {step.subject}@{step.host} {state}{why}")


class _Scratch(MemoryStore):
    """A store that keeps what is written in memory and finds everything else in the real one. Blobs for hosts are never
    read through: an inventory lists none that is new, and the deployer of the model sends each host all it lacks."""

    def __init__(self, below: ExchangeStore, plan: Plan) -> None:
        super().__init__(clock=lambda: 0.0)
        self._below = below
        if plan.from_release is not None:
            self.move_ref(REF, None, plan.from_release)

    def contains(self, digest: Digest) -> bool:
        return super().contains(digest) or self._below.contains(digest)

    def read(self, digest: Digest) -> bytes:
        return super().read(digest) if digest in self.blobs else self._below.read(digest)

    def stream(self, digest: Digest) -> Iterator[bytes]:
        if digest not in self.blobs:
            raise BlobMissing(digest)
        return super().stream(digest)

    def stat(self, digest: Digest) -> BlobStat:
        return super().stat(digest) if digest in self.blobs else self._below.stat(digest)
