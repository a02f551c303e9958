"""A definition with everything in it, generated ones that are valid by construction, and a model of hosts that is as
strict as a real one.

The pools are small, so that two definitions often share processes, trade ports and volumes, and fill their hosts.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import strategies as st

from agent.api.processes import ProcessSpec
from cas.digest import Digest, digest_of
from deployer.applying.observe import HostState, Observed, running
from deployer.language.schema import Definition, Host, Process, Ready, Region, Secret, Update, Volume
from deployer.planning.plan import Kind, Plan, Step
from deployer.resolving.specs import specs_of, volumes_of

MiB = 1 << 20
BLOBS = [digest_of(name.encode()) for name in ("one", "two", "three")]
NAMES = ("a", "b", "c", "d")
HOSTS = ("h1", "h2", "h3")
PORTS = (8001, 8002, 8003, 8004)

BASE = Definition(
    name="shop",
    region={"fra": Region(), "ams": Region()},
    host={
        "h1": Host(region="fra", address="10.0.0.1:7400", cores=8000, memory=1 << 30, disk=1 << 30),
        "h2": Host(region="fra", address="10.0.0.2:7400", cores=8000, memory=1 << 30, disk=1 << 30),
    },
    process={
        "web": Process(
            binary=BLOBS[0],
            hosts=("h1",),
            args=("--port",),
            env={"LOG": "info"},
            config={"/etc/web": BLOBS[1]},
            listen={"http": "host:8080/tcp"},
            connect={"kv": "kv@h1:6379/tcp"},
            ready=Ready(tcp="http", path="/"),
            secret={"/run/secrets/db": "db"},
        ),
        "kv": Process(binary=BLOBS[0], hosts=("h1",), volume={"/data": "kv-data"}, listen={"kv": "0.0.0.0:6379/tcp"}),
    },
    volume={"kv-data": Volume(size=MiB), "other": Volume(size=MiB)},
    secret={name: Secret(sealed={"h1": BLOBS[1], "h2": BLOBS[1]}) for name in ("db", "other")},
)
"""A definition with every table of the schema; tests change one thing of it."""


@st.composite
def definitions(draw: st.DrawFn, *, loopback: bool | None = None) -> Definition:
    """Up to 4 processes on up to 3 hosts, which are one machine (loopback) or three."""
    one_machine = draw(st.booleans()) if loopback is None else loopback
    hosts = draw(st.lists(st.sampled_from(HOSTS), min_size=1, unique=True))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    ports = draw(st.permutations(PORTS))
    processes = {
        name: draw(_processes(name, port, hosts, one_machine)) for name, port in zip(sorted(names), ports, strict=False)
    }
    processes = _connect(draw, processes)
    volumes = {
        volume: Volume(size=draw(st.sampled_from((1, 2))) * MiB)
        for process in processes.values()
        for volume in process.volume.values()
    }
    room = Definition(name="shop", region={"r": Region()}, host={}, process=processes, volume=volumes)
    return msgspec.structs.replace(room, host={host: draw(_host(host, room, one_machine)) for host in sorted(hosts)})


@st.composite
def _processes(draw: st.DrawFn, name: str, port: int, hosts: list[str], one_machine: bool) -> Process:
    volume = draw(st.sampled_from((None, None, "v1" if name in "ab" else "v2", name)))
    single = one_machine or volume is not None
    places = draw(st.lists(st.sampled_from(hosts), min_size=1, max_size=1 if single else 3, unique=True))
    address = draw(st.sampled_from(("127.0.0.1", "0.0.0.0")))
    listens = draw(st.booleans())
    return Process(
        binary=draw(st.sampled_from(BLOBS)),
        hosts=tuple(sorted(places)),
        args=draw(st.sampled_from(((), ("--fast",)))),
        config=draw(st.dictionaries(st.sampled_from(("/etc/a", "/etc/b")), st.sampled_from(BLOBS), max_size=2)),
        cores=draw(st.sampled_from((500, 1000))),
        memory=draw(st.sampled_from((1, 2))) * MiB,
        restart=draw(st.sampled_from(("always", "never"))),
        volume={} if volume is None else {"/data": volume},
        listen={"main": f"{address}:{port}/tcp"} if listens else {},
        ready=Ready(tcp="main") if listens and draw(st.booleans()) else None,
        update=Update(on_failure=draw(st.sampled_from(("rollback", "pause")))),
    )


def _connect(draw: st.DrawFn, processes: dict[str, Process]) -> dict[str, Process]:
    """Let some processes connect to others on the same host, and give each volume to one process only."""
    taken: set[str] = set()
    result = {}
    for name, process in processes.items():
        connect = {}
        for other, target in processes.items():
            same = target.hosts == process.hosts and len(target.hosts) == 1
            if other != name and target.listen and same and draw(st.booleans()):
                port = target.listen["main"].split(":")[1]
                connect[other] = f"{other}@{target.hosts[0]}:{port}"
        volume = {path: vol for path, vol in process.volume.items() if vol not in taken}
        taken |= set(volume.values())
        result[name] = msgspec.structs.replace(process, connect=connect, volume=volume)
    return result


@st.composite
def _host(draw: st.DrawFn, name: str, definition: Definition, one_machine: bool) -> Host:
    placed = [process for process in definition.process.values() if name in process.hosts]
    number = HOSTS.index(name) + 1
    address = f"127.0.0.1:740{number}" if one_machine else f"10.0.0.{number}:7400"
    return Host(
        region="r",
        address=address,
        cores=sum(process.cores for process in placed) + draw(st.sampled_from((1, 500, 8000))),
        memory=sum(process.memory for process in placed) + draw(st.sampled_from((65536, MiB, 64 * MiB))),
        disk=1 << 40,
    )


def observed_of(definition: Definition, hosts: Iterable[str]) -> Observed:
    """These hosts, running what the definition says where it knows them, and nothing where it does not."""
    specs, volumes = specs_of(definition), volumes_of(definition)
    return Observed(
        {
            host: HostState({name: running(spec) for name, spec in specs.get(host, {}).items()}, volumes.get(host, {}))
            for host in sorted(hosts)
        }
    )


class Refused(AssertionError):
    """A call that a real host would refuse."""


class World:
    """Hosts as strict as real ones: every call of a stage must be possible whichever of the others came first."""

    def __init__(self, definition: Definition, observed: Observed) -> None:
        self._definition = definition
        self._hosts = {
            host: {name: runs.spec for name, runs in state.processes.items()} for host, state in observed.hosts.items()
        }
        self._volumes = {host: dict(state.volumes) for host, state in observed.hosts.items()}
        self.touched: list[set[str]] = []

    def carry_out(self, plan: Plan) -> None:
        for stage in plan.stages:
            self.carry_out_stage(stage)

    def carry_out_stage(self, stage: tuple[Step, ...]) -> None:
        for step in stage:
            self._check_expected(step)
        self._check_room(stage)
        self._check_ports(stage)
        self._check_volumes(stage)
        for step in stage:
            self._act(step)
        self.touched.append({step.host for step in stage})

    def specs(self) -> dict[str, dict[str, ProcessSpec]]:
        return self._hosts

    def volumes(self) -> dict[str, dict[str, int]]:
        return self._volumes

    def _check_expected(self, step: Step) -> None:
        if step.kind is Kind.CREATE_VOLUME:
            return
        runs = self._hosts[step.host].get(step.subject)
        digest: Digest | None = running(runs).digest if runs else None
        if digest != step.expect:
            raise Refused(f"unexpected state: {step}")

    def _check_room(self, stage: tuple[Step, ...]) -> None:
        for host in {step.host for step in stage}:
            if host not in self._definition.host:
                continue
            capacity = self._definition.host[host]
            for dimension, limit in (("cores_milli", capacity.cores), ("memory_bytes", capacity.memory)):
                used = sum(getattr(spec, dimension) for spec in self._hosts[host].values())
                growth = 0
                for step in stage:
                    if step.host == host and step.spec:
                        before = self._hosts[host].get(step.subject)
                        growth += max(getattr(step.spec, dimension) - (getattr(before, dimension) if before else 0), 0)
                if growth and used + growth > limit:
                    raise Refused(f"no room for {dimension} on {host}: {used} + {growth} > {limit}")

    def _machine(self, host: str) -> str:
        known = self._definition.host.get(host)
        return "loopback" if known and known.address.startswith("127.") else host

    def _check_ports(self, stage: tuple[Step, ...]) -> None:
        taken = {
            (self._machine(host), endpoint.port): (host, name)
            for host, processes in self._hosts.items()
            for name, spec in processes.items()
            for endpoint in spec.listen.values()
        }
        for step in stage:
            for endpoint in step.spec.listen.values() if step.spec else ():
                holder = taken.setdefault((self._machine(step.host), endpoint.port), (step.host, step.subject))
                if holder != (step.host, step.subject):
                    raise Refused(f"port {endpoint.port} is held by {holder}: {step}")

    def _check_volumes(self, stage: tuple[Step, ...]) -> None:
        held = {
            (host, volume): name
            for host, processes in self._hosts.items()
            for name, spec in processes.items()
            for volume in spec.volume.values()
        }
        for step in stage:
            for volume in step.spec.volume.values() if step.spec else ():
                if volume not in self._volumes[step.host]:
                    raise Refused(f"no volume {volume}: {step}")
                if held.setdefault((step.host, volume), step.subject) != step.subject:
                    raise Refused(f"volume {volume} is held: {step}")

    def _act(self, step: Step) -> None:
        if step.size_bytes is not None:
            if step.size_bytes <= self._volumes[step.host].get(step.subject, 0):
                raise Refused(f"a volume cannot shrink: {step}")
            self._volumes[step.host][step.subject] = step.size_bytes
        elif step.spec is None:
            del self._hosts[step.host][step.subject]
        else:
            self._hosts[step.host][step.subject] = step.spec
