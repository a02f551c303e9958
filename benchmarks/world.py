"""Three regions of four hosts: a large module is deployed to all of them, then its next version, and things go wrong.

    python -m benchmarks.world CORPUS [--run NAME ...] [--mbit 20] [--delay-ms 40] [--lines netem|wire] [--trace]
        [--files 400] [--file-kib 128]

Each host is a network namespace with an agent as its users run it; between every two regions lies a line of `--mbit` in
each direction and `--delay-ms` one way (`tests.world`), by `tc netem` where the kernel has it. The operator's command
runs in a namespace of its own in the first region. The module (rolldown's, of CORPUS as `benchmarks.fetch` makes it) is
a file that the process on every host is given: it travels as its binary would, and nothing is compiled meanwhile. Every
run begins with agents that have nothing. The runs `small...` deploy many files instead, `--files` of random bytes.

Time counts from the moment the command begins to send until the last host's store has the module, which is looked at
from outside; bytes are those that came into a region through its router, with the heads of packets, handshakes and
questions. The yardstick is one copy of the same bytes over one line: from a bare socket, and by `apply` to one host
alone. Every run ends with a look at what each host serves. Needs root.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.corpus import pairs_of
from cas.compression import smallest
from cas.digest import digest_of
from cas.swarm.ranking import Swarm
from tests.world import watching
from tests.world.copying import bare_copy_s
from tests.world.fleet import DEPLOYER, Fleet, Host
from tests.world.ground import Border, World, has_netem, why_not, world
from tests.world.watching import Event, Watched

REGIONS = {
    "fra": (DEPLOYER, "fra1", "fra2", "fra3", "fra4"),
    "ams": ("ams1", "ams2", "ams3", "ams4"),
    "sin": ("sin1", "sin2", "sin3", "sin4"),
}
REGION = "ams"
"""Where things go wrong."""
VERSION = "1.0\n"
"""What the web server of every host says of itself."""
SETTLED_S = 25.0
"""Agents that have just started ask around for releases (3.4 KB over a border), and then every five minutes."""
AWAY_S = 10.0
SLOWER = 100.0
SLOW_BORDER_MBIT = 1.0
LINES = {"netem": "tc netem", "wire": "tests.world.wire"}


class Versions(NamedTuple):
    old: bytes
    new: bytes
    small: tuple[bytes, ...]
    """Many files, for the runs that deploy these."""


class Step(NamedTuple):
    what: str
    watched: Watched
    without: tuple[str, ...] = ()
    """Hosts that have another reason to be late, which the row tells of."""


class Ground:
    """One fleet, and what the runs do to it."""

    def __init__(self, fleet: Fleet, versions: Versions, *, trace: bool) -> None:
        self.fleet = fleet
        self.versions = versions
        self._trace = trace
        self._half_bytes = len(smallest(versions.old)[1]) // 2

    @property
    def world(self) -> World:
        return self.fleet.world

    def hosts_of(self, region: str) -> list[str]:
        return [host for host in self.world.regions[region] if host != DEPLOYER]

    @property
    def bringer(self) -> Host:
        """Who brings the first version into the region where things go wrong."""
        swarm = Swarm({region: self.hosts_of(region) for region in self.world.regions})
        return self.fleet.hosts[swarm.ranking(REGION, digest_of(self.versions.old))[0]]

    @property
    def waiting(self) -> Host:
        """One that waits for it there."""
        return next(self.fleet.hosts[host] for host in self.hosts_of(REGION) if host != self.bringer.name)

    def apply(
        self,
        module: bytes,
        events: Sequence[Event] = (),
        *,
        dead: Sequence[str] = (),
        more: Sequence[bytes] = (),
        greeting: str = "hello",
        hosts: Sequence[str] = (),
        longer_s: float = 0.0,
    ) -> Watched:
        """`longer_s`: what it may take beyond what it may usually."""
        watched = watching.apply(
            self.fleet,
            module,
            more=more,
            greeting=greeting,
            hosts=hosts,
            dead=dead,
            events=events,
            within_s=watching.COMMAND_S + longer_s,
        )
        if self._trace:
            print(watched.messages, (self.fleet.root / "out").read_text(), file=sys.stderr)
            print(sorted((round(at_s, 2), host) for host, at_s in watched.seconds.items()), file=sys.stderr)
        return watched

    def apply_small(self, events: Sequence[Event] = (), *, dead: Sequence[str] = ()) -> Watched:
        first, *more = self.versions.small
        return self.apply(first, events, more=more, dead=dead)

    def in_the_middle(self, act: Callable[[], object], half_bytes: int = 0) -> Event:
        """When half of the module, or so many bytes, has come into the region where things go wrong."""
        awaited = half_bytes or self._half_bytes
        before = self.world.border_bytes()[REGION]
        return Event(lambda *_: self.world.border_bytes()[REGION] - before >= awaited, lambda _: act())


# --- the runs -------------------------------------------------------------------------------------------------------


def alone(ground: Ground) -> Iterator[Step]:
    yield Step("first version, to one far host alone", ground.apply(ground.versions.old, hosts=["ams1"]))
    yield Step("next version, to one far host alone", ground.apply(ground.versions.new, hosts=["ams1"]))


def sound(ground: Ground) -> Iterator[Step]:
    yield Step("first version", ground.apply(ground.versions.old))
    time.sleep(SETTLED_S)
    yield Step("next version", ground.apply(ground.versions.new))
    yield Step("only a new greeting", ground.apply(ground.versions.new, greeting="good evening"))


def dead(ground: Ground) -> Iterator[Step]:
    yield from _killed(ground, ground.waiting)


def bringer_dead(ground: Ground) -> Iterator[Step]:
    yield from _killed(ground, ground.bringer)


def _killed(ground: Ground, victim: Host) -> Iterator[Step]:
    role = "brings it in" if victim is ground.bringer else "waits for it"
    killed = ground.apply(ground.versions.old, [ground.in_the_middle(victim.kill)], dead=[victim.name])
    yield Step(f"a host that {role} is killed (`kill -9`)", killed)
    ground.fleet.start([victim])
    yield Step("it is back, applied again", ground.apply(ground.versions.old))


def restarted(ground: Ground) -> Iterator[Step]:
    yield _restarted(ground, ground.bringer, "brings it in")


def restarted_waiting(ground: Ground) -> Iterator[Step]:
    yield _restarted(ground, ground.waiting, "waits for it")


def _restarted(ground: Ground, victim: Host, role: str) -> Step:
    def restart() -> None:
        victim.kill()
        victim.begin()

    watched = ground.apply(ground.versions.old, [ground.in_the_middle(restart)])
    return Step(f"the host that {role} is killed, and started again at once", watched)


def liar(ground: Ground) -> Iterator[Step]:
    host = ground.bringer
    host.signal(signal.SIGTERM)
    host.lies = True
    ground.fleet.start([host])
    yield Step("the host that brings it in flips a bit of each piece", ground.apply(ground.versions.old))


def slow(ground: Ground) -> Iterator[Step]:
    yield _slowed(ground, ground.bringer, "brings it in")


def slow_waiting(ground: Ground) -> Iterator[Step]:
    yield _slowed(ground, ground.waiting, "waits for it")


def _slowed(ground: Ground, host: Host, role: str) -> Step:
    assert ground.world.border is not None
    mbit = ground.world.border.mbit / SLOWER
    ground.world.slow(host.name, mbit)
    what = f"the link of the host that {role} is {SLOWER:.0f} times slower than a border"
    copy_s = len(smallest(ground.versions.old)[1]) / (mbit * 125_000)
    return Step(what, ground.apply(ground.versions.old, longer_s=2 * copy_s), (host.name,))


def slow_border(ground: Ground) -> Iterator[Step]:
    ground.world.slow_border(REGION, SLOW_BORDER_MBIT)
    what = f"every line into and out of a region has {SLOW_BORDER_MBIT:g} Mbit/s"
    yield Step(what, ground.apply(ground.versions.old))


def cut(ground: Ground) -> Iterator[Step]:
    since: list[float] = []

    def cut_off() -> None:
        since.append(time.perf_counter())
        ground.world.cut(REGION)

    healed = Event(
        lambda *_: bool(since) and time.perf_counter() >= since[0] + AWAY_S, lambda _: ground.world.heal(REGION)
    )
    watched = ground.apply(ground.versions.old, [ground.in_the_middle(cut_off), healed])
    yield Step(f"a region is cut off for {AWAY_S:.0f} s", watched)


def gone(ground: Ground) -> Iterator[Step]:
    def is_handed_over(_: float, seconds: dict[str, float]) -> bool:
        return {ground.world.region_of[host] for host in seconds} == set(ground.world.regions)

    event = Event(is_handed_over, lambda process: process.kill())
    yield Step("the deployer is killed once a host of each region has it", ground.apply(ground.versions.old, [event]))


def small(ground: Ground) -> Iterator[Step]:
    yield Step(_many(ground), ground.apply_small())


def small_dead(ground: Ground) -> Iterator[Step]:
    """Each host of the region brings some of them in."""
    half_bytes, victim = sum(map(len, ground.versions.small)) // 2, ground.bringer
    killed = ground.apply_small([ground.in_the_middle(victim.kill, half_bytes)], dead=[victim.name])
    yield Step(f"{_many(ground)}, one of those that bring them in is killed (`kill -9`)", killed)
    ground.fleet.start([victim])
    yield Step("it is back, applied again", ground.apply_small())


def _many(ground: Ground) -> str:
    files = ground.versions.small
    return f"{len(files)} files of {len(files[0]) >> 10} KiB"


RUNS: dict[str, Callable[[Ground], Iterator[Step]]] = {
    "alone": alone,
    "sound": sound,
    "dead": dead,
    "bringer-dead": bringer_dead,
    "restarted": restarted,
    "restarted-waiting": restarted_waiting,
    "liar": liar,
    "slow": slow,
    "slow-waiting": slow_waiting,
    "slow-border": slow_border,
    "cut": cut,
    "gone": gone,
    "small": small,
    "small-dead": small_dead,
}


# --- the table ------------------------------------------------------------------------------------------------------


@contextmanager
def standing(versions: Versions, border: Border, *, netem: bool, trace: bool) -> Iterator[Ground]:
    with (
        tempfile.TemporaryDirectory(prefix="world-") as scratch,
        world(REGIONS, border, netem=netem).standing() as made,
        Fleet(Path(scratch), made).standing() as fleet,
    ):
        yield Ground(fleet, versions, trace=trace)


def row(ground: Ground, step: Step) -> str:
    watched = step.watched
    others = {host: at_s for host, at_s in watched.seconds.items() if host not in step.without}
    times = f"{max(others.values()):.2f}"
    times += "".join(f" (it itself {watched.seconds.get(host, float('nan')):.1f})" for host in step.without)
    bare_s = bare_copy_s(ground.world, DEPLOYER, ground.hosts_of(list(REGIONS)[-1])[0], watched.form_bytes)
    into = [watched.border_bytes[region] for region in list(REGIONS)[1:]]
    copies = " / ".join(f"{watched.copies(region):.3f}" for region in list(REGIONS)[1:])
    numbers = [f"{len(watched.seconds)}", times, f"{max(others.values()) / bare_s:.2f}", f"{watched.form_bytes:,}"]
    numbers += [" / ".join(f"{count:,}" for count in into), copies, f"{watched.code}", f"{watched.command_s:.1f}"]
    return f"| {step.what} | " + " | ".join(numbers) + " |"


def served_right(ground: Ground) -> bool:
    """Whether the web server of every host answers, after one more apply where the last one was cut off."""
    code, _, _ = ground.fleet.run("apply", "--yes")
    pages = [ground.fleet.page(host, "/version") for host in ground.fleet.deployed] if code == 0 else []
    return code == 0 and set(pages) == {VERSION}


def main() -> None:
    parser = argparse.ArgumentParser(description="three regions of four hosts")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--run", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--mbit", type=float, default=20.0)
    parser.add_argument("--delay-ms", type=float, default=40.0)
    parser.add_argument("--lines", choices=LINES, help="what makes the lines; by default netem where the kernel has it")
    parser.add_argument("--trace", action="store_true", help="tell all that was seen")
    parser.add_argument("--files", type=int, default=400, help="how many the runs `small...` deploy")
    parser.add_argument("--file-kib", type=int, default=128)
    given = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    *_, pair = pairs_of(given.corpus, ["rolldown"], "*.wasm")
    chance = random.Random(1)
    files = tuple(chance.randbytes(given.file_kib << 10) for _ in range(given.files))
    versions = Versions(pair.old.read_bytes(), pair.new.read_bytes(), files)
    netem = has_netem()
    if given.lines == "netem" and not netem:
        raise SystemExit("this machine's kernel has no tc netem: leave --lines away")
    lines = given.lines or ("netem" if netem else "wire")
    print(f"{given.mbit:g} Mbit/s, {given.delay_ms:g} ms one way, by {LINES[lines]}\n")
    print("| | hosts with it | last, s | of a bare copy | module, bytes | into ams / sin, bytes | copies | exit | s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    border = Border(given.mbit, given.delay_ms)
    for name in given.run:
        with standing(versions, border, netem=lines == "netem", trace=given.trace) as ground:
            for step in RUNS[name](ground):
                print(row(ground, step), flush=True)
            if not served_right(ground):
                print(f"| {name}: NOT every host ended right |", flush=True)


if __name__ == "__main__":
    main()
