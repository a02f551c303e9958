"""Random definitions, each made from the one before, and what every host must run by them.

What a host must run follows from the drawn world alone, not from lowcloud's own reading of the definition, so that the
check at the end does not repeat a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final, NamedTuple

WEBS: Final = ("web-a", "web-b", "web-c", "web-d")
KVS: Final = ("kv-a", "kv-b")
CLIENT: Final = "caller"
REGIONS: Final = ("r1", "r2", "r3")
CHANGES: Final = 3
"""At most so many things change from one definition to the next."""


class Web(NamedTuple):
    """A web server on some hosts."""

    hosts: frozenset[str]
    version: int
    greeting: str
    note: str
    """An environment variable that only makes it another specification."""
    restart: str
    """A field that changes without a new guest."""

    def says(self) -> str:
        return f"{self.greeting} from web {self.version}.0\n"


class World(NamedTuple):
    """What should run."""

    hosts: tuple[str, ...]
    webs: Mapping[str, Web]
    kvs: Mapping[str, str]
    """The host of each key-value server; its volume is there."""
    callers: frozenset[str]
    """Hosts with a client of the first key-value server."""

    def of_host(self, host: str) -> dict[str, Web | str]:
        """Each process of a host, with what makes it what it is."""
        found: dict[str, Web | str] = {
            name: web._replace(hosts=frozenset(), restart="") for name, web in self.webs.items() if host in web.hosts
        }
        found |= {name: "kv" for name, home in self.kvs.items() if home == host}
        if host in self.callers and self.kvs:
            found[CLIENT] = f"calls {next(iter(self.kvs.items()))}"
        return found


def first(rng: Random, hosts: tuple[str, ...]) -> World:
    webs = {name: _web(rng, hosts) for name in WEBS[:2]}
    return World(hosts, webs, {KVS[0]: rng.choice(hosts)}, frozenset())


def following(rng: Random, world: World, every_host: tuple[str, ...]) -> World:
    """One to `CHANGES` random changes; now and then none, or a definition that has hardly anything in common."""
    if rng.random() < 0.04:
        return world
    if rng.random() < 0.06:
        return first(rng, world.hosts)
    for _ in range(rng.randint(1, CHANGES)):
        world = rng.choice((_hosts, _add, _remove, _move, _upgrade, _upgrade, _greet, _note, _hot))(
            rng, world, every_host
        )
    return world


def _web(rng: Random, hosts: tuple[str, ...]) -> Web:
    chosen = frozenset(rng.sample(hosts, rng.randint(1, max(1, len(hosts) // 2))))
    return Web(chosen, rng.choice((1, 2)), _word(rng), _word(rng), "always")


def _word(rng: Random) -> str:
    return "".join(rng.choices("abcdefgh", k=6))


def _hosts(rng: Random, world: World, every_host: tuple[str, ...]) -> World:
    """A host leaves the definition, or all are there again."""
    if len(world.hosts) < len(every_host) or len(world.hosts) < 3:
        return world._replace(hosts=every_host)
    gone = rng.choice(world.hosts)
    left = tuple(host for host in world.hosts if host != gone)
    webs = {name: web._replace(hosts=(web.hosts - {gone}) or frozenset(left[:1])) for name, web in world.webs.items()}
    kvs = {name: left[0] if home == gone else home for name, home in world.kvs.items()}
    return World(left, webs, kvs, world.callers - {gone})


def _add(rng: Random, world: World, _: tuple[str, ...]) -> World:
    if rng.random() < 0.3:
        return world._replace(callers=world.callers | {rng.choice(world.hosts)})
    free = [name for name in (*WEBS, *KVS) if name not in world.webs and name not in world.kvs]
    if not free:
        return world
    name = rng.choice(free)
    if name in KVS:
        return world._replace(kvs=dict(sorted({**world.kvs, name: rng.choice(world.hosts)}.items())))
    return world._replace(webs={**world.webs, name: _web(rng, world.hosts)})


def _remove(rng: Random, world: World, _: tuple[str, ...]) -> World:
    if rng.random() < 0.3:
        return world._replace(callers=frozenset())
    names = [*world.webs, *world.kvs]
    if len(names) < 2:
        return world
    gone = rng.choice(names)
    return world._replace(
        webs={name: web for name, web in world.webs.items() if name != gone},
        kvs={name: home for name, home in world.kvs.items() if name != gone},
    )


def _move(rng: Random, world: World, _: tuple[str, ...]) -> World:
    if world.kvs and rng.random() < 0.4:
        return world._replace(kvs={**world.kvs, rng.choice(list(world.kvs)): rng.choice(world.hosts)})
    return _with_web(rng, world, lambda web: web._replace(hosts=_web(rng, world.hosts).hosts))


def _upgrade(rng: Random, world: World, _: tuple[str, ...]) -> World:
    return _with_web(rng, world, lambda web: web._replace(version=3 - web.version))


def _greet(rng: Random, world: World, _: tuple[str, ...]) -> World:
    return _with_web(rng, world, lambda web: web._replace(greeting=_word(rng)))


def _note(rng: Random, world: World, _: tuple[str, ...]) -> World:
    return _with_web(rng, world, lambda web: web._replace(note=_word(rng)))


def _hot(rng: Random, world: World, _: tuple[str, ...]) -> World:
    return _with_web(
        rng, world, lambda web: web._replace(restart="always" if web.restart == "on-failure" else "on-failure")
    )


def _with_web(rng: Random, world: World, change: Callable[[Web], Web]) -> World:
    if not world.webs:
        return world
    name = rng.choice(list(world.webs))
    return world._replace(webs={**world.webs, name: change(world.webs[name])})


# --- as a definition file -------------------------------------------------------------------------------------------


def toml(world: World, addresses: Mapping[str, str], ports: Mapping[str, int]) -> str:
    """The definition. `addresses`: address:port of each host's agent; `ports`: of each process that listens. Each web
    server reads conf/GREETING.toml."""
    lines = ['name = "fleet"', *(f"[region.{name}]" for name in REGIONS)]
    for number, host in enumerate(world.hosts):
        lines += [
            f"[host.{host}]",
            f'region = "{REGIONS[number % len(REGIONS)]}"',
            f'address = "{addresses[host]}"',
            'cores = 64\nmemory = "64GiB"\ndisk = "64GiB"',
        ]
    for name, web in world.webs.items():
        lines += [
            *_process(name, f"web-{web.version}", web.hosts),
            f'env = {{ NOTE = "{web.note}" }}',
            f'restart = "{web.restart}"',
            f'config = {{ "/etc/web.toml" = "conf/{web.greeting}.toml" }}',
            f'listen = {{ http = "host:{ports[name]}/tcp" }}',
            'ready = { tcp = "http", path = "/healthz", within = "60s" }',
        ]
    for name, home in world.kvs.items():
        lines += [
            *_process(name, "kv", (home,)),
            f'volume = {{ "/data" = "{name}-data" }}',
            f'listen = {{ kv = "host:{ports[name]}/tcp" }}',
            'ready = { tcp = "kv", within = "60s" }',
            f'[volume.{name}-data]\nsize = "16MiB"',
        ]
    if world.callers and world.kvs:
        server, home = next(iter(world.kvs.items()))
        lines += [
            *_process(CLIENT, "client", world.callers),
            'args = ["--interval-ms", "2000"]',
            f'connect = {{ kv = "{server}@{home}:{ports[server]}/tcp" }}',
        ]
    return "\n".join(lines) + "\n"


def _process(name: str, binary: str, hosts: frozenset[str] | tuple[str, ...]) -> list[str]:
    places = ", ".join(f'"{host}"' for host in sorted(hosts))
    return [
        f"[process.{name}]",
        f'binary = "build/{binary}.wasm"',
        f"hosts = [{places}]",
        'cores = "0.1"\nmemory = "32MiB"',
        'update = { drain = "500ms" }',
    ]
