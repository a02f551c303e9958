"""Real agents on the machines of a world, the operator's directory on another one, and what can be seen from outside.

Whether a host has a blob is asked of its store, which any process may open: not of the agent, which may lie or be dead.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from cas.digest import Digest
from cas.store import Store
from deployer.cloud import trust
from tests.tools.command import command, environment, succeed
from tests.world.ground import World
from tools import guests

DEPLOYER: Final = "deployer"
PORT: Final = 7400
READY_S: Final = 60.0
END_S: Final = 60.0

HEAD: Final = """\
name = "world"

[process.web]
binary = "web.wasm"
hosts = [{hosts}]
cores = "0.1"
memory = "32MiB"
config = {{ "/etc/web.toml" = "web.toml", "/srv/module" = "module"{more} }}
listen = {{ http = "0.0.0.0:8080/tcp" }}
ready = {{ tcp = "http", path = "/healthz", within = "60s" }}
update = {{ drain = "1s" }}
"""
HOST: Final = """
[host.{host}]
region = "{region}"
address = "{address}"
cores = 1
memory = "512MiB"
disk = "1GiB"
"""


class Host:
    """An agent, which can be killed and started again."""

    def __init__(self, name: str, world: World, state: Path) -> None:
        self.name = name
        self.state = state
        self.address = f"{world.addresses[name]}:{PORT}"
        self._world = world
        self._process: subprocess.Popen[bytes] | None = None
        self.lies = False

    def begin(self) -> None:
        """Start it; `wait_until_ready` afterwards."""
        words = ["--host", self.name, "--listen", self.address, "--state", str(self.state), "--shared"]
        program = [sys.executable, "-P", "-m", "tests.world.liar", *words] if self.lies else command("agent", *words)
        with (self.state / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._world.inside(self.name, program),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], READY_S)
        line = self._process.stdout.readline() if readable else b""
        assert line, f"the agent of {self.name} did not start:\n{(self.state / 'log').read_text()[-3000:]}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid  # `ip netns exec` becomes the command

    def kill(self) -> None:
        """As a power cut would, of the agent only."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.send_signal(number)
        self._process.wait(END_S)
        self._process.stdout.close()
        self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None


class Fleet:
    """Use `standing`."""

    def __init__(self, root: Path, world: World) -> None:
        self.root = root
        self.world = world
        self.cloud = root / "cloud"
        self.hosts = {name: Host(name, world, root / name) for name in world.region_of if name != DEPLOYER}
        self.deployed: tuple[str, ...] = ()
        """The hosts of the definition that was written last."""
        self._stores = ExitStack()
        self.stores: dict[str, Store] = {}

    @contextmanager
    def standing(self) -> Iterator[Fleet]:
        """Agents that wait for their first release."""
        succeed("init", self.cloud, "--operator", "ada")
        try:
            for host in self.hosts.values():
                host.state.mkdir(mode=0o700)
                authority = self.cloud / ".lowcloud" / "ca"
                trust.issue_host(authority, host.name, [host.address], host.state / "credentials")
            self.start(self.hosts.values())
            for name, host in self.hosts.items():
                self.stores[name] = self._stores.enter_context(Store.open(host.state / "store"))
            yield self
        finally:
            self._stores.close()
            self._end()

    def start(self, hosts: Iterable[Host]) -> None:
        begun = list(hosts)
        for host in begun:
            host.begin()
        for host in begun:
            host.wait_until_ready()

    # --- the operator ---

    def write(
        self, module: bytes, *, more: Sequence[bytes] = (), greeting: str = "hello", hosts: Sequence[str] = ()
    ) -> None:
        """The definition: a web server on every host, and a large file that it is given, with these as well."""
        self.deployed = tuple(hosts or self.hosts)
        named = ", ".join(f'"{host}"' for host in self.deployed)
        regions = "".join(f"\n[region.{region}]\n" for region in self.world.regions)
        names = [f"file-{number}" for number in range(len(more))]
        text = HEAD.format(hosts=named, more="".join(f', "/srv/{name}" = "{name}"' for name in names)) + regions
        for host in self.hosts.values():
            region = self.world.region_of[host.name]
            text += HOST.format(host=host.name, region=region, address=host.address)
        (self.cloud / "cloud.toml").write_text(text)
        (self.cloud / "web.toml").write_text(f'greeting = "{greeting}"\n')
        (self.cloud / "web.wasm").write_bytes(guests.path("web-1").read_bytes())
        (self.cloud / "module").write_bytes(module)
        for name, data in zip(names, more, strict=True):
            (self.cloud / name).write_bytes(data)

    @contextmanager
    def command(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command of the operator's under way, its messages in a pipe."""
        process = subprocess.Popen(
            self.world.inside(DEPLOYER, command("-C", self.cloud, *words)),
            env=environment(),
            cwd=self.cloud,
            stdin=subprocess.DEVNULL,
            stdout=(self.root / "out").open("w"),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(END_S)
            assert process.stderr is not None
            process.stderr.close()

    def run(self, *words: str) -> tuple[int, str, str]:
        """A command to its end: exit code, output, messages."""
        with self.command(*words) as process:
            assert process.stderr is not None
            messages = process.stderr.read()
            return process.wait(END_S), (self.root / "out").read_text(), messages

    # --- seen from outside ---

    def lacking(self, blobs: Sequence[Digest]) -> list[str]:
        """The hosts whose stores do not have all of these."""
        return [name for name, store in self.stores.items() if store.missing(blobs)]

    def page(self, host: str, path: str) -> str:
        """What the web server of a host answers."""
        fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read().decode(), end='')"
        url = f"http://{self.world.addresses[host]}:8080{path}"
        done = subprocess.run(
            self.world.inside(DEPLOYER, [sys.executable, "-c", fetch, url]), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # --- the end ---

    def _end(self) -> None:
        """Every agent with all that it runs."""
        self.start(host for host in self.hosts.values() if not host.runs)
        words = [sys.executable, "-P", "-m", "tests.world.ending", str(self.cloud / ".lowcloud" / "operator")]
        words.append(json.dumps({host.name: host.address for host in self.hosts.values()}))
        subprocess.run(self.world.inside(DEPLOYER, words), env=environment(), check=False, timeout=END_S)
        for host in self.hosts.values():
            host.signal(signal.SIGTERM)
