"""The journey: definition after definition, with something going wrong on the way, and a look from outside whenever a
command has said that all is well."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Final, NamedTuple

from tests.fleet import outside, worlds
from tests.fleet.fleet import Fleet
from tests.fleet.worlds import World
from tests.tools.command import Result

PLANNERS: Final = ("minimal", "rolling", "regions", "minimal")
TROUBLES: Final = (
    "none", "none", "agents killed", "agents away", "agents frozen", "agents frozen on the way", "agents come back",
    "deployer killed", "deployer killed", "deployer interrupted", "two deployers",
)  # fmt: skip
SETTLE_TRIES: Final = 4
EARLIEST_S: Final = 0.3
LATEST_S: Final = 2.5
"""Trouble comes so long after a command has begun."""
FROZEN_S: Final = 4.0
CATCH_UP_S: Final = 120.0
ALLOWED_CODES: Final = {0, 1, 4, 130, -signal.SIGKILL}
"""1: nothing was touched; 4: in part, or brought back; 130: Ctrl-C before anything was touched."""


class Told(NamedTuple):
    """Figures of a journey."""

    definitions: int
    applies: int
    calls: int
    troubles: Mapping[str, int]
    codes: Mapping[int, int]
    checks: int
    kept: int
    """So often a process that nothing concerned was found to be the same OS process as before."""


class Journey:
    """`say` is told a line for each definition."""

    def __init__(self, fleet: Fleet, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
        self._fleet = fleet
        self._rng = Random(seed)
        self._say = say
        self._troubles: Counter[str] = Counter()
        self._codes: Counter[int] = Counter()
        self._applies = self._calls = self._checks = self._kept = 0
        self._settled: tuple[World, dict[str, dict[str, int]]] | None = None
        self._disturbed: dict[str, set[str]] = {}
        """Host and process: what was not the same in every definition since the last settled one."""

    def go(self, definitions: int, troubles: Sequence[str] = ()) -> Told:
        """Through so many definitions, each with its trouble; without `troubles`, with what chance brings."""
        world = worlds.first(self._rng, self._fleet.hosts)
        for number in range(1, definitions + 1):
            self._fleet.write(world)
            trouble = troubles[number - 1] if troubles else self._rng.choice(TROUBLES)
            self._troubles[trouble] += 1
            code = self._in_trouble(trouble)
            self._note_disturbed(world)
            if number == definitions or self._rng.random() < 0.6:
                self._settle(world)
            self._say(f"{number}: {trouble}, exit code {code}, {self._calls} calls so far")
            if number < definitions:
                world = worlds.following(self._rng, world, self._fleet.hosts)
        return Told(definitions, self._applies, self._calls, self._troubles, self._codes, self._checks, self._kept)

    # --- one apply, in trouble ---

    def _in_trouble(self, trouble: str) -> int:
        some = self._rng.sample(self._fleet.hosts, max(1, len(self._fleet.hosts) // 5))
        match trouble:
            case "agents away":
                for host in some:
                    self._fleet.kill(host)
                return self._apply().code
            case "agents frozen":
                for host in some:
                    self._fleet.freeze(host)
                return self._apply().code
            case "agents frozen on the way":
                return self._apply(lambda process: self._freeze_for_a_while(some, process)).code
            case "agents come back":
                for host in some:
                    self._fleet.kill(host)
                told = self._apply(lambda _: self._start(some), "--catch-up", f"{CATCH_UP_S:.0f}s")
                assert told.code == 0, f"{told.out}\n{told.err}"
                return told.code
            case "agents killed":
                return self._apply(lambda _: self._kill_and_start(some)).code
            case "deployer killed":
                return self._apply(lambda process: process.kill()).code
            case "deployer interrupted":
                return self._apply(lambda process: process.send_signal(signal.SIGINT)).code
            case "two deployers":
                return self._two()
            case _:
                return self._apply().code

    def _kill_and_start(self, hosts: list[str]) -> None:
        for host in hosts:
            self._fleet.kill(host)
        self._start(hosts)

    def _start(self, hosts: list[str]) -> None:
        for host in hosts:
            self._fleet.agents[host].start()

    def _freeze_for_a_while(self, hosts: list[str], process: subprocess.Popen[bytes]) -> None:
        for host in hosts:
            self._fleet.freeze(host)
        with suppress(subprocess.TimeoutExpired):
            process.wait(FROZEN_S)
        for host in hosts:
            self._fleet.thaw(host)

    def _apply(self, disturb: Callable[[subprocess.Popen[bytes]], object] | None = None, *words: str) -> Result:
        planner = self._rng.choice(PLANNERS)
        latest_s = self._rng.uniform(EARLIEST_S, LATEST_S)
        words = (*words, "--allow-unreachable", "--planner", planner)
        with self._fleet.deployer("apply", "--yes", "--json", *words) as process:
            if disturb is not None:
                try:
                    process.wait(latest_s)
                except subprocess.TimeoutExpired:
                    disturb(process)
        return self._told(self._fleet.result(process))

    def _two(self) -> int:
        """A second operator begins while the first is under way: one of them may be told that it came too late."""
        codes: list[int] = []

        def second() -> None:
            from tests.tools.command import lowcloud

            codes.append(
                lowcloud("apply", "--yes", "--json", "--allow-unreachable", cwd=self._fleet.cloud, timeout_s=600).code
            )

        other = threading.Thread(target=second)
        other.start()
        first = self._apply().code
        other.join()
        assert set(codes) <= ALLOWED_CODES, codes
        return first

    def _told(self, result: Result) -> Result:
        assert result.code in ALLOWED_CODES, f"{result.code}\n{result.out}\n{result.err}"
        self._applies += 1
        self._codes[result.code] += 1
        if result.code in (0, 4):
            told = result.json
            while told:
                self._calls += told["calls"]
                told = told["revert"]
        return result

    # --- and then all is well ---

    def _settle(self, world: World) -> None:
        self._fleet.heal()
        for _ in range(SETTLE_TRIES):
            with self._fleet.deployer("apply", "--yes", "--json") as process:
                pass
            result = self._told(self._fleet.result(process))
            if result.code == 0:
                break
        assert result.code == 0, f"{result.out}\n{result.err}"
        pids = outside.check(self._fleet, world)
        assert self._fleet.ask("status")["drift"] == []
        self._checks += 1
        self._check_kept(world, pids)
        self._settled, self._disturbed = (world, pids), {}

    def _note_disturbed(self, world: World) -> None:
        if self._settled is None:
            return
        before = self._settled[0]
        for host in self._fleet.hosts:
            was = before.of_host(host) if host in before.hosts else {}
            now = world.of_host(host) if host in world.hosts else {}
            names = {name for name in {*was, *now} if was.get(name) != now.get(name)}
            self._disturbed.setdefault(host, set()).update(names)

    def _check_kept(self, world: World, pids: Mapping[str, Mapping[str, int]]) -> None:
        """What no definition since the last check has changed is still the same OS process."""
        if self._settled is None:
            return
        for host, was in self._settled[1].items():
            for name, pid in was.items():
                if name not in self._disturbed.get(host, set()) and name in world.of_host(host) and host in world.hosts:
                    now = pids[host].get(name)
                    assert now == pid, f"{name}@{host} was started again for nothing: {pid}, now {now}"
                    self._kept += 1
