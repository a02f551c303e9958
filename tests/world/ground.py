"""Regions of machines: network namespaces on one switch in each region, and between every two regions a line with a
rate and a delay.

Each region has a router. What crosses a border passes the routers' counters, which the kernel keeps: what they say is
no word of the programs that are measured. A line is a pair of veth devices with `tc netem` where this machine's kernel
has it and nobody asks for the other, otherwise `tests.world.wire`; where nothing is asked of it, a plain pair.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.network.namespaces import why_not as why_no_namespaces

ROOT: Final = Path(__file__).parent.parent.parent
PACKET_BYTES: Final = 1500
QUEUE_MS: Final = 200.0
"""What a router keeps before it drops: a little more than a round trip."""


class Border(NamedTuple):
    """Of each line between two regions, in each direction."""

    mbit: float = 20.0
    delay_ms: float = 40.0
    """One way: a round trip takes twice as long."""


def why_not() -> str | None:
    """Why this machine cannot make a world, in one line, or None."""
    if shutil.which("tc") is None or shutil.which("nft") is None:
        return "a world needs the `tc` and `nft` commands (Debian: iproute2, nftables)"
    return why_no_namespaces()


class World:
    """Use `world` to make one."""

    def __init__(self, regions: Mapping[str, Sequence[str]], border: Border | None, *, netem: bool) -> None:
        self.regions = {region: tuple(machines) for region, machines in regions.items()}
        self.region_of = {machine: region for region, machines in self.regions.items() for machine in machines}
        self.border = border
        self._by_netem = border if netem else None
        self.addresses = {
            machine: f"10.88.{number}.{place}"
            for number, machines in enumerate(self.regions.values(), start=1)
            for place, machine in enumerate(machines, start=1)
        }

    # --- what is done to it ---

    def inside(self, machine: str, command: Sequence[str]) -> list[str]:
        """The command, run on that machine."""
        return ["ip", "netns", "exec", self._name(machine), *command]

    def border_bytes(self) -> dict[str, int]:
        """What came into each region from the others, with the heads of its packets."""
        return {
            region: sum(self._received(region, f"to-{other}") for other in self.regions if other != region)
            for region in self.regions
        }

    def cut(self, region: str, *, whole: bool = True, other: str = "") -> None:
        """From now on nothing passes the borders of a region; or, not `whole`, the one to another region."""
        devices = [f"to-{name}" for name in self.regions if name != region and (whole or name == other)]
        names = ", ".join(f'"{device}"' for device in devices)
        rules = (
            "table inet cut { chain forward { type filter hook forward priority 0; "
            f"iifname {{ {names} }} drop; oifname {{ {names} }} drop; }}\n}}\n"
        )
        subprocess.run(self.inside(_router(region), ["nft", "-f", "-"]), input=rules, text=True, check=True)

    def heal(self, region: str) -> None:
        subprocess.run(self.inside(_router(region), ["nft", "delete", "table", "inet", "cut"]), check=True)

    def slow(self, machine: str, mbit: float) -> None:
        """Its own link, in both directions."""
        self._shape(_router(self.region_of[machine]), machine, mbit)
        self._shape(machine, "eth0", mbit)

    def unslow(self, machine: str) -> None:
        """Its own link is again as it was."""
        self._unshape(_router(self.region_of[machine]), machine)
        self._unshape(machine, "eth0")

    def slow_border(self, region: str, mbit: float) -> None:
        """Each line into a region, and out of it."""
        for other in self.regions:
            if other != region:
                self._pace(_router(other), f"to-{region}", mbit)
                self._pace(_router(region), f"to-{other}", mbit)

    def unslow_border(self, region: str) -> None:
        for other in self.regions:
            if other != region:
                self._pace(_router(other), f"to-{region}", None)
                self._pace(_router(region), f"to-{other}", None)

    # --- making it ---

    @contextmanager
    def standing(self) -> Iterator[World]:
        names = [*self.region_of, *map(_router, self.regions)]
        with ExitStack() as lines:
            try:
                for name in names:
                    _ip("netns", "add", self._name(name))
                    self._ip(name, "link", "set", "lo", "up")
                for number, region in enumerate(self.regions, start=1):
                    self._make_region(number, region)
                for one, other in itertools.combinations(enumerate(self.regions, start=1), 2):
                    self._make_line(lines, one, other)
                yield self
            finally:
                lines.close()
                for name in names:
                    subprocess.run(["ip", "netns", "delete", self._name(name)], capture_output=True)

    def _make_region(self, number: int, region: str) -> None:
        router = _router(region)
        self._set(router, "net.ipv4.ip_forward", "1")
        self._ip(router, "link", "add", "switch", "type", "bridge")
        self._ip(router, "address", "add", f"10.88.{number}.254/24", "dev", "switch")
        self._ip(router, "link", "set", "switch", "up")
        for machine in self.regions[region]:
            self._ip(router, "link", "add", machine, "type", "veth", "peer", "eth0", "netns", self._name(machine))
            self._ip(router, "link", "set", machine, "master", "switch", "up")
            self._ip(machine, "address", "add", f"{self.addresses[machine]}/24", "dev", "eth0")
            self._ip(machine, "link", "set", "eth0", "up")
            self._ip(machine, "route", "add", "default", "via", f"10.88.{number}.254")

    def _make_line(self, lines: ExitStack, one: tuple[int, str], other: tuple[int, str]) -> None:
        """Between the routers of two regions."""
        (low, here), (high, there) = one, other
        ends = {(_router(here), f"to-{there}"): (1, high), (_router(there), f"to-{here}"): (2, low)}
        if self.border is None or self._by_netem:
            self._veth_pair(*ends)
        else:
            lines.enter_context(self._wire(self.border, *ends))
        for (router, device), (place, beyond) in ends.items():
            self._ip(router, "address", "add", f"10.89.{low * 16 + high}.{place}/30", "dev", device)
            self._ip(router, "link", "set", device, "up")
            self._ip(router, "route", "add", f"10.88.{beyond}.0/24", "via", f"10.89.{low * 16 + high}.{3 - place}")

    def _veth_pair(self, one: tuple[str, str], other: tuple[str, str]) -> None:
        self._ip(one[0], "link", "add", one[1], "type", "veth", "peer", other[1], "netns", self._name(other[0]))
        for router, device in (one, other) if self._by_netem else ():
            # A segment of many packets would count as one in the queue.
            self._ip(router, "link", "set", device, "gso_max_segs", "1")
            self._pace(router, device, None)

    @contextmanager
    def _wire(self, border: Border, one: tuple[str, str], other: tuple[str, str]) -> Iterator[None]:
        words = [one[1], self._name(one[0]), other[1], self._name(other[0])]
        words += ["--delay-ms", str(border.delay_ms), "--mbit", str(border.mbit), "--queue-ms", str(QUEUE_MS)]
        command = [sys.executable, "-P", "-m", "tests.world.wire", *words]
        with subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise RuntimeError("the line between two regions was not made")
                yield
            finally:
                process.kill()

    def _pace(self, router: str, device: str, mbit: float | None) -> None:
        """The rate of an end of a line; None: as it was made."""
        if self._by_netem is not None:  # which a bucket would take the place of
            self._delay(router, device, self._by_netem.delay_ms, mbit or self._by_netem.mbit)
        elif mbit is not None:
            self._shape(router, device, mbit)
        else:
            self._unshape(router, device)

    def _delay(self, router: str, device: str, delay_ms: float, mbit: float) -> None:
        """What is under way stays so where netem is there already."""
        limit = round((QUEUE_MS + delay_ms) / 1000 * mbit * 125_000 / PACKET_BYTES)
        words = f"netem delay {delay_ms}ms rate {mbit}mbit limit {limit}".split()
        _run("tc", "-n", self._name(router), "qdisc", "replace", "dev", device, "root", *words)

    def _shape(self, machine: str, device: str, mbit: float) -> None:
        words = f"tbf rate {mbit}mbit burst {max(PACKET_BYTES * 2, round(mbit * 250))} latency {QUEUE_MS}ms".split()
        _run("tc", "-n", self._name(machine), "qdisc", "replace", "dev", device, "root", *words)

    def _unshape(self, machine: str, device: str) -> None:
        _run("tc", "-n", self._name(machine), "qdisc", "delete", "dev", device, "root")

    def _received(self, region: str, device: str) -> int:
        said = _ip("-n", self._name(_router(region)), "-s", "-j", "link", "show", "dev", device)
        return int(json.loads(said)[0]["stats64"]["rx"]["bytes"])

    def _set(self, machine: str, name: str, value: str) -> None:
        _run(*self.inside(machine, ["sysctl", "-q", "-w", f"{name}={value}"]))

    def _ip(self, machine: str, *words: str) -> None:
        _ip("-n", self._name(machine), *words)

    def _name(self, machine: str) -> str:
        return f"lcw{os.getpid()}-{machine}"


def world(regions: Mapping[str, Sequence[str]], border: Border | None = None, *, netem: bool | None = None) -> World:
    """Regions and their machines; `border` None: lines without a rate or a delay. `netem`: whether the kernel makes
    the lines, not `tests.world.wire`; None: where it can."""
    return World(regions, border, netem=has_netem() if netem is None and border else bool(netem))


def has_netem() -> bool:
    """Whether this machine's kernel has `tc netem`."""
    name = f"lcw{os.getpid()}-try"
    _ip("netns", "add", name)
    try:
        words = ["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(["tc", "-n", name, *words], capture_output=True).returncode == 0
    finally:
        _ip("netns", "delete", name)


def _router(region: str) -> str:
    return f"router-{region}"


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
