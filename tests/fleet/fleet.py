"""The agents, the operator's directory, and the real command run in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from deployer.cloud import trust
from tests import ports
from tests.deployer.ground import LocalAgent
from tests.fleet.worlds import KVS, WEBS, World, toml
from tests.tools.command import Result, command, environment, succeed
from tools import guests

COMMAND_S: Final = 600.0
"""Every command ends by itself long before, even with agents that do not answer."""
FIRST_NUMBER: Final = 10
"""The first host is 127.0.0.10."""


class Fleet:
    """`count` agents, each on an address of its own."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.hosts = tuple(f"h{number:02}" for number in range(1, count + 1))
        self.ips = {host: f"127.0.0.{FIRST_NUMBER + number}" for number, host in enumerate(self.hosts)}
        self.ports = {name: ports.free_port() for name in (*WEBS, *KVS)}
        agent_port = ports.free_port()
        self.addresses = {host: f"{ip}:{agent_port}" for host, ip in self.ips.items()}
        self.cloud = root / "cloud"
        self.frozen: set[str] = set()
        self.agents: dict[str, LocalAgent] = {}

    def start(self) -> None:
        succeed("init", self.cloud, "--operator", "ada")
        (self.cloud / "conf").mkdir()
        (self.cloud / "build").mkdir()
        for name in ("web-1", "web-2", "kv", "client"):
            shutil.copyfile(guests.path(name), self.cloud / "build" / f"{name}.wasm")
        for host, ip in self.ips.items():
            state = self.root / host
            state.mkdir(mode=0o700)
            trust.issue_host(self.cloud / ".lowcloud" / "ca", host, [ip], state / "credentials")
            self.agents[host] = LocalAgent(host, ip, state)
            self.agents[host].listen = self.addresses[host]
            self.agents[host].start()

    def end(self) -> None:
        """Every agent with all that it runs."""
        self.heal()
        for host in self.hosts:
            if host in self.agents and self.agents[host].runs:
                self._shut_down(host)

    def _shut_down(self, host: str) -> None:
        import asyncio

        from agent.client.client import AgentClient

        async def ask() -> None:
            credentials = self.cloud / ".lowcloud" / "operator"
            async with AgentClient(host, self.addresses[host], credentials) as client:
                await client.shut_down(guests=True)

        asyncio.run(ask())
        self.agents[host].wait()

    # --- trouble ---

    def kill(self, host: str) -> None:
        """As a power cut would, of the agent only: its guests go on."""
        self.thaw(host)
        if self.agents[host].runs:
            self.agents[host].kill()

    def freeze(self, host: str) -> None:
        """Cut off: connections to it are taken by the kernel, and nobody ever answers."""
        if self.agents[host].runs and host not in self.frozen:
            os.kill(self.agents[host].pid, signal.SIGSTOP)
            self.frozen.add(host)

    def thaw(self, host: str) -> None:
        if host in self.frozen:
            os.kill(self.agents[host].pid, signal.SIGCONT)
            self.frozen.discard(host)

    def heal(self) -> None:
        """Every agent runs and answers again."""
        for host, agent in self.agents.items():
            self.thaw(host)
            if not agent.runs:
                agent.start()

    # --- the operator ---

    def write(self, world: World) -> None:
        for web in world.webs.values():
            (self.cloud / "conf" / f"{web.greeting}.toml").write_text(f'greeting = "{web.greeting}"\n')
        (self.cloud / "cloud.toml").write_text(toml(world, self.addresses, self.ports))

    @contextmanager
    def deployer(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command under way. Whatever happens to it, it has ended afterwards."""
        with (self.root / "out").open("wb") as out, (self.root / "err").open("wb") as err:
            process = subprocess.Popen(
                command(*words), cwd=self.cloud, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
            try:
                yield process
                process.wait(COMMAND_S)
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                process.wait()

    def result(self, process: subprocess.Popen[bytes]) -> Result:
        """What the last `deployer` said."""
        out, err = ((self.root / name).read_text() for name in ("out", "err"))
        assert "Traceback" not in err, err
        return Result(process.returncode, out, err)

    def ask(self, *words: str) -> Any:
        """A question whose answer is JSON, whatever the exit code."""
        with self.deployer(*words, "--json") as process:
            pass
        result = self.result(process)
        assert result.out, result.err
        return json.loads(result.out)
