"""Two real hosts on this machine: agents in processes of their own, and a cloud that may call them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent.client.client import AgentClient
from deployer.applying.apply import apply
from deployer.applying.fleet import Fleet
from deployer.applying.observe import Observed, observe
from deployer.applying.outcome import Applied
from deployer.applying.progress import Progress, Quiet
from deployer.applying.site import Site
from deployer.cloud import trust
from deployer.cloud.cloud import Cloud
from deployer.language.schema import Definition, Host, Process, Ready, Region, Update, Volume
from deployer.planning.plan import Plan
from deployer.planning.planning import keep_definition, plan_for
from tests.ports import free_port

GUESTS = Path(__file__).parent.parent.parent / "tools" / "guests"
READY_S = 60.0
END_S = 60.0
ADDRESSES = {"h1": "127.0.0.1", "h2": "127.0.0.3"}

T = TypeVar("T")


class LocalAgent:
    """An agent process. It keeps its port when it is started again."""

    def __init__(self, host: str, address: str, state: Path) -> None:
        self.host = host
        self.state = state
        self.listen = f"{address}:{free_port(address)}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = (
            "import sys; from pathlib import Path; from agent.main import run;"
            "run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), pin=False)"
        )
        with (self.state / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, self.host, self.listen, str(self.state)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(GUESTS.parent.parent)},
                start_new_session=True,
            )
        pipe = self._process.stdout
        assert pipe is not None
        readable, _, _ = select.select([pipe], [], [], READY_S)
        line = pipe.readline() if readable else b""
        assert line, f"the agent of {self.host} did not start:\n{(self.state / 'log').read_text()[-3000:]}"
        self.listen = json.loads(line)["address"]

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self.wait()

    def wait(self) -> None:
        """It was told to end."""
        if self._process is not None:
            self._process.wait(END_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        """0 where it does not run."""
        return self._process.pid if self._process is not None else 0


class Ground:
    """The hosts, the cloud, and a ref of its own for each test. A first apply on a new ref finds whatever the test
    before has left running, and plans it away."""

    def __init__(self, cloud: Cloud, agents: Mapping[str, LocalAgent], ref: str) -> None:
        self.cloud = cloud
        self.store = cloud.store
        self.agents = agents
        self.ref = ref
        self.by = trust.common_name(cloud.credentials)

    # --- definitions ---

    def blob(self, data: bytes) -> str:
        return self.store.put(data).digest

    def guest(self, name: str) -> str:
        return self.store.put((GUESTS / f"{name}.wasm").read_bytes(), name=f"{name[:3]}.wasm").digest

    def web(self, port: int, *, guest: str = "web-1", greeting: str = "hello", **fields: Any) -> Process:
        config = self.blob(f'greeting = "{greeting}"\n'.encode())
        return Process(
            **{
                "binary": self.guest(guest),
                "hosts": ("h1", "h2"),
                "config": {"/etc/web.toml": config},
                "listen": {"http": f"host:{port}/tcp"},
                "ready": Ready(tcp="http", path="/healthz", within=60_000),
                "update": Update(drain=1000),
                "cores": 100,
                **fields,
            }
        )

    def broken_web(self, port: int, **fields: Any) -> Process:
        """It does not understand its configuration and never gets ready."""
        return self.web(port, config={"/etc/web.toml": self.blob(b"nonsense\n")}, **fields)

    def kv(self, port: int) -> Process:
        return Process(
            binary=self.guest("kv"),
            hosts=("h1",),
            volume={"/data": "kv-data"},
            listen={"kv": f"host:{port}/tcp"},
            ready=Ready(tcp="kv", within=60_000),
            update=Update(drain=1000),
            cores=100,
        )

    def definition(self, **processes: Process) -> Definition:
        hosts = {
            name: Host(region="here", address=agent.listen, cores=64_000, memory=1 << 40, disk=1 << 40)
            for name, agent in self.agents.items()
        }
        volumes = {name for process in processes.values() for name in process.volume.values()}
        return Definition(
            name="shop",
            region={"here": Region()},
            host=hosts,
            process=processes,
            volume={name: Volume(size=1 << 24) for name in volumes},
        )

    # --- doing ---

    async def on_site(self, act: Callable[[Site], Awaitable[T]], progress: Progress | None = None) -> T:
        addresses = {name: agent.listen for name, agent in self.agents.items()}
        async with Fleet(addresses, self.cloud.credentials) as fleet:
            return await act(
                Site(self.store, self.ref, fleet, self.by, progress or Quiet(), credentials=self.cloud.credentials)
            )

    async def plan(self, definition: Definition, planner: str = "minimal", **options: Any) -> Plan:
        version = keep_definition(self.store, definition)
        return await self.on_site(lambda site: plan_for(site, version, planner, **options))

    async def carry_out(self, plan: Plan, progress: Progress | None = None, message: str = "") -> Applied:
        return await self.on_site(lambda site: apply(site, plan, message=message), progress)

    async def apply(self, definition: Definition, planner: str = "minimal", message: str = "") -> Applied:
        return await self.carry_out(await self.plan(definition, planner), message=message)

    async def observed(self) -> Observed:
        return await self.on_site(lambda site: observe(site.fleet))

    async def with_client(self, host: str, act: Callable[[AgentClient], Awaitable[T]]) -> T:
        async def on_host(site: Site) -> T:
            return await act(await site.fleet.client(host))

        return await self.on_site(on_host)

    # --- looking ---

    def get(self, host: str, port: int, path: str = "/") -> str:
        address = self.agents[host].listen.rpartition(":")[0]
        with urllib.request.urlopen(f"http://{address}:{port}{path}", timeout=READY_S) as answer:
            text: str = answer.read().decode()
            return text

    def end_all(self) -> None:
        """End the agents with everything that they run; an agent that was killed is started once more for that."""
        import asyncio

        for agent in self.agents.values():
            if not agent.runs:
                agent.start()

        async def shut_down(site: Site) -> None:
            await site.fleet.each(site.fleet.hosts, lambda client: client.shut_down(guests=True))

        asyncio.run(self.on_site(shut_down))
        deadline = time.monotonic() + END_S
        for agent in self.agents.values():
            if agent._process is not None:
                agent._process.wait(max(0.1, deadline - time.monotonic()))


def replaced(definition: Definition, name: str, **fields: Any) -> Definition:
    """A definition with some fields of one process changed."""
    process = msgspec.structs.replace(definition.process[name], **fields)
    return msgspec.structs.replace(definition, process={**definition.process, name: process})
