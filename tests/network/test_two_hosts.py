"""Two hosts that are not this machine, each enrolled with `host add`, deployed to from a third.

The deployer and the hosts share no loopback and no state; only the bundle file is carried from one to the other. On one
host guests are in its network; on the other each has a network namespace of its own, one behind the next.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.daemon import networking
from tests.network import namespaces
from tests.tools.command import command, environment
from tools import guests

pytestmark = pytest.mark.skipif(namespaces.why_not() is not None, reason=str(namespaces.why_not()))

TIMEOUT_S = 150.0

DEFINITION = """
name = "shop"

[region.fra]
[host.fra1]
region = "fra"
address = "{fra1}:7400"
cores = 1
memory = "512MiB"
disk = "1GiB"

[region.ams]
[host.ams1]
region = "ams"
address = "{ams1}:7400"
cores = 1
memory = "512MiB"
disk = "1GiB"

[process.web]
binary = "web.wasm"
hosts = ["fra1", "ams1"]
cores = "0.25"
config = {{ "/etc/web.toml" = "web.toml" }}
listen = {{ http = "0.0.0.0:8080/tcp" }}
ready = {{ tcp = "http", path = "/healthz", within = "60s" }}
update = {{ drain = "5s" }}

[process.kv]
binary = "kv.wasm"
hosts = ["fra1"]
cores = "0.25"
listen = {{ kv = "host:6379/tcp" }}
volume = {{ "/data" = "kv-data" }}
ready = {{ tcp = "kv", within = "60s" }}

[volume.kv-data]
size = "16MiB"

[process.client]
binary = "client.wasm"
hosts = ["ams1"]
cores = "0.25"
connect = {{ kv = "kv@fra1:6379/tcp" }}
"""


SHUT_DOWN = """
import asyncio, pathlib, sys
from agent.client.client import AgentClient

async def main(host, address, credentials):
    async with AgentClient(host, address, pathlib.Path(credentials)) as client:
        await client.shut_down(guests=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Deployer:
    """The third machine: the cloud's directory and the command, inside its own namespace."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *words: str) -> Any:
        """Run a verb with --json and give what it printed."""
        whole = namespaces.inside("deployer", command("-C", self.directory, "--json", *words))
        done = subprocess.run(
            whole, env=environment(), cwd=self.directory, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def get(self, address: str, path: str) -> str:
        """Fetch a page as a client on this machine would."""
        fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read().decode(), end='')"
        done = subprocess.run(
            namespaces.inside("deployer", ["python3", "-c", fetch, f"http://{address}:8080{path}"]),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


NETWORKS = {"fra1": "listeners", "ams1": "auto" if networking.why_not() else "namespaces"}


@contextmanager
def agent_on(machine: str, state: Path) -> Iterator[None]:
    """The agent of an enrolled host, ready; it and its guests are ended afterwards."""
    whole = namespaces.inside(machine, command("agent", "--state", state, "--network", NETWORKS[machine]))
    with (state / "agent.log").open("wb") as log:
        process = subprocess.Popen(whole, env=environment(), stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (state / "agent.log").read_text()
        assert json.loads(line)["host"] == machine
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    with namespaces.machines("deployer", "fra1", "ams1") as made:
        yield made


@pytest.fixture(scope="module")
def deployer(addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    """A cloud whose two hosts were enrolled from bundles and run their agents."""
    directory = tmp_path_factory.mktemp("deployer")
    one = Deployer(directory)
    subprocess.run(command("init", directory), env=environment(), check=True, capture_output=True)
    write_definition(directory, addresses, version="web-1")
    with ExitStack() as agents:
        for host in ("fra1", "ams1"):
            bundle = directory / f"{host}.bundle"
            one.run("host", "add", host, "--listen", f"{addresses[host]}:7400", "-o", str(bundle))
            state = tmp_path_factory.mktemp(host)
            enroll = command("host", "enroll", bundle, "--state", state)
            subprocess.run(enroll, env=environment(), check=True, capture_output=True)
            bundle.unlink()
            agents.enter_context(agent_on(host, state))
        try:
            yield one
        finally:
            for host in ("fra1", "ams1"):
                shut_down(one, host, f"{addresses[host]}:7400")


def shut_down(deployer: Deployer, host: str, address: str) -> None:
    """End an agent with all its guests, by the route that `lowcloud down` uses on one machine."""
    words = [sys.executable, "-P", "-c", SHUT_DOWN, host, address, str(deployer.directory / ".lowcloud" / "operator")]
    subprocess.run(namespaces.inside("deployer", words), env=environment(), check=True, timeout=TIMEOUT_S)


def write_definition(directory: Path, addresses: dict[str, str], *, version: str, greeting: str = "hello") -> None:
    (directory / "shop.toml").write_text(DEFINITION.format(**addresses))
    (directory / "web.wasm").write_bytes(guests.path(version).read_bytes())
    (directory / "web.toml").write_text(f'greeting = "{greeting}"\n')
    for name in ("kv", "client"):
        (directory / f"{name}.wasm").write_bytes(guests.path(name).read_bytes())


def test_a_fleet_of_two_hosts_is_deployed_updated_and_rolled_back_from_a_third(
    deployer: Deployer, addresses: dict[str, str]
) -> None:
    first = deployer.run("apply", "shop.toml", "--yes")
    assert first["failed"] == 0
    hosts = (addresses["fra1"], addresses["ams1"])
    assert [deployer.get(host, "/version").strip() for host in hosts] == ["1.0", "1.0"]
    before = deployer.get(hosts[0], "/")

    write_definition(deployer.directory, addresses, version="web-2", greeting="good evening")
    second = deployer.run("apply", "shop.toml", "--yes")
    assert second["failed"] == 0
    assert all("good evening" in deployer.get(host, "/") for host in hosts)
    assert [deployer.get(host, "/version").strip() for host in hosts] == ["2.0", "2.0"]

    deployer.run("rollback", "--yes")
    assert [deployer.get(host, "/") for host in hosts] == [before, before]
    rows = {row["process"]: row for row in deployer.run("ps") if row["process"] in ("client", "kv")}
    assert {row["state"] for row in deployer.run("ps")} == {"running"}
    assert rows["client"]["connections"] == rows["kv"]["connections"] == 1  # from a namespace to the other host
    deployer.run("audit", "verify")
    newest, _, oldest = deployer.run("history")
    assert newest["definition"] == oldest["definition"]


def test_a_host_whose_certificate_is_of_another_cloud_is_not_believed(
    deployer: Deployer, addresses: dict[str, str], tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    subprocess.run(command("init", stranger), env=environment(), check=True, capture_output=True)
    (stranger / "shop.toml").write_text(DEFINITION.format(**addresses))
    for file in ("web.wasm", "kv.wasm", "client.wasm", "web.toml"):
        (stranger / file).write_bytes((deployer.directory / file).read_bytes())
    whole = namespaces.inside("deployer", command("-C", stranger, "apply", "shop.toml", "--yes"))
    done = subprocess.run(whole, env=environment(), cwd=stranger, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert "trust" in done.stderr or "certificate" in done.stderr
