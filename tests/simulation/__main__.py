"""By hand: `python -m tests.simulation --hosts 10000 --regions 20 --gigabytes 1 --seed 1 --failing 0.05`.

Other worlds: `--cut-s 10` (one border), `--slow-hosts 1`, `--uneven`, three regions of four hosts with long lines,
`--hosts 12 --regions 3 --border-mbit 20 --far-delay 0.04 --gigabytes 0.011 --blobs 1`, the same with many small blobs,
`--gigabytes 0.05 --blobs 400 --mixed`, and one large region in which bringers fail, which shows in a minute and a half
what 10,000 hosts show in twenty, `--hosts 866 --sizes 150 500 --failing 0.05 --failing-bringers 3`.

The blobs are in one region, each at the host that brings it there, as a deployer leaves them that has handed them over
and gone. The lower bound is the time that the slowest link needs for the bytes that must pass it at the least.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import resource
import sys
import time
from collections.abc import Container
from functools import partial

from cas.swarm.blob import Want
from cas.swarm.limits import Limits
from cas.swarm.ranking import Swarm
from tests.simulation.network import Model, Network
from tests.simulation.world import World, break_bringers, break_some, item, make_world


def main(arguments: list[str]) -> int:
    given = _parse(arguments)
    gc.disable()
    chance = random.Random(given.seed)
    swarm = _swarm(given.hosts, given.regions, given.sizes)
    model = Model(
        host_bytes_per_s=given.host_mbit * 125e3,
        border_bytes_per_s=given.border_mbit * 125e3,
        far_delay_s=given.far_delay,
    )
    network = Network(swarm.region_of, model)
    world = make_world(swarm, network, Limits(run_pieces=given.run_pieces))
    total = int(given.gigabytes * (1 << 30))
    sizes = _sizes(total, given.blobs, random.Random(given.seed) if given.mixed else None)
    items = [item(f"seed {given.seed} blob {number}", size) for number, size in enumerate(sizes)]
    first = next(iter(swarm.regions))
    holders: dict[str, list[int]] = {}
    for number, one in enumerate(items):
        holders.setdefault(swarm.ranking(first, one.whole.digest)[0], []).append(number)
    for name, numbers in holders.items():
        world.hold(name, [items[number] for number in numbers])
    if given.uneven:
        _make_uneven(network, holders, chance)
    most_held = max(sum(sizes[number] for number in numbers) for numbers in holders.values())
    bound_s = _bound_s(model, total, most_held, world)
    failing = break_some(world, given.failing, chance, within_s=2 * bound_s, spare=set(holders))
    if given.failing_bringers:
        blobs = [one.whole.digest for one in items]
        second = list(swarm.regions)[1]
        failing += break_bringers(
            world, second, blobs, given.failing_bringers, chance, within_s=2 * bound_s, spare=set(failing)
        )
    others = [name for name in world.hosts if name not in holders and name not in failing]
    for name in chance.sample(others, given.slow_hosts):
        failing.append(name)
        world.hosts[name].break_down("slow")
    if given.cut_s:
        network.at(bound_s / 3, partial(network.cut, max(swarm.regions), given.cut_s))
    for name, host in world.hosts.items():
        host.counts_pieces = False
        mine = holders.get(name, [])
        wants = [Want(one, swarm) for number, one in enumerate(items) if number not in mine]
        network.at(chance.random() * 0.2, partial(host.want, wants))
    network.run(until_s=given.until, is_done=world.is_done, check_every=given.hosts)
    _report(world, first, total, bound_s, failing)
    return 0 if not [host for host in world.sound() if host.fetch.wanted] else 1


def _sizes(total: int, blobs: int, chance: random.Random | None) -> list[int]:
    """All equal, or between a sixteenth and four times of a mean one."""
    if chance is None:
        return [total // blobs] * blobs
    parts = [2 ** chance.uniform(-4, 2) for _ in range(blobs)]
    return [int(total * part / sum(parts)) for part in parts]


def _bound_s(model: Model, total: int, most_held: int, world: World) -> float:
    """Every host takes all bytes in, every border lets all bytes through once, a holder sends each of its blobs once,
    and all that is received has been sent by someone."""
    hosts = len(world.hosts)
    return max(
        total / min(link.rate for link in world.network.down.values()),
        total / model.border_bytes_per_s if len(world.swarm.regions) > 1 else 0.0,
        most_held / model.host_bytes_per_s,
        total * (hosts - 1) / hosts / model.host_bytes_per_s,
    )


def _make_uneven(network: Network, holders: Container[str], chance: random.Random) -> None:
    """Hosts have links of a quarter of the rate to all of it; those that hold the blobs have all of it."""
    for name in network.up:
        if name not in holders:
            network.up[name].rate = network.down[name].rate = network.model.host_bytes_per_s * chance.uniform(0.25, 1)


def _report(world: World, first: str, total: int, bound_s: float, failing: list[str]) -> None:
    sound = world.sound()
    done = sorted(host.done_s or 0.0 for host in sound if not host.fetch.wanted)
    bad = sum(not ended.ok for host in sound for ended in host.ended.values())
    into = sorted(world.crossings(region) / total for region in world.swarm.regions if region != first)
    print(f"hosts {len(world.hosts)}, failing {len(failing)}")
    print(f"sound hosts that are done: {len(done)} of {len(sound)}; blobs that ended in vain: {bad}")
    last = done[-1] if done else float("nan")
    middle = done[len(done) // 2] if done else float("nan")
    print(f"lower bound {bound_s:.2f} s; last host {last:.2f} s = {last / bound_s:.2f} x; median {middle:.2f} s")
    if into:
        print(f"copies over a border: mean {sum(into) / len(into):.3f}, least {into[0]:.3f}, most {into[-1]:.3f}")
    print(f"copies back into {first}: {world.crossings(first) / total:.3f}")
    left = [
        source.peer for host in sound for source in host.fetch.sources() if source.reason and source.peer not in failing
    ]
    print(f"sound hosts that a host left at some time: {len(left)} times, {len(set(left))} hosts")
    print(f"messages for each host: {sum(host.messages for host in world.hosts.values()) / len(world.hosts):.0f}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"CPU {time.process_time():.0f} s, {used.ru_maxrss / 1024:.0f} MiB")


def _swarm(hosts: int, regions: int, sizes: list[int]) -> Swarm:
    """The first regions have these sizes, the others share the rest of the hosts."""
    names: dict[str, list[str]] = {f"r{number:02}": [] for number in range(regions)}
    numbers = iter(range(hosts))
    for region, size in zip(names, sizes, strict=False):
        names[region] = [f"h{number}" for number in itertools.islice(numbers, size)]
    for place, number in enumerate(numbers):
        names[f"r{len(sizes) + place % (regions - len(sizes)):02}"].append(f"h{number}")
    return Swarm(names)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--regions", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="hosts of the first regions, not of the last")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--blobs", type=int, default=16)
    parser.add_argument("--mixed", action="store_true", help="blobs of different sizes, as large together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failing", type=float, default=0.0, help="share of the hosts that fail in some way")
    parser.add_argument("--failing-bringers", type=int, default=0, help="so many more in the second region")
    parser.add_argument("--host-mbit", type=float, default=1000)
    parser.add_argument("--border-mbit", type=float, default=1000)
    parser.add_argument("--far-delay", type=float, default=Model().far_delay_s, help="seconds, one way")
    parser.add_argument("--uneven", action="store_true", help="hosts have links of different rates")
    parser.add_argument("--cut-s", type=float, default=0.0, help="one border is cut for so long")
    parser.add_argument("--slow-hosts", type=int, default=0, help="so many hosts are 100 times slower from the start")
    parser.add_argument("--run-pieces", type=int, default=Limits().run_pieces, help="pieces in one request")
    parser.add_argument("--until", type=float, default=3600.0, help="seconds of virtual time at most")
    given = parser.parse_args(arguments)
    if given.sizes and (len(given.sizes) >= given.regions or sum(given.sizes) >= given.hosts):
        parser.error("--sizes: the last regions have to get hosts too")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
