"""A small cloud for the command's tests: two hosts on this machine, a web server on both, and a key-value server."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.tools.command import Result, lowcloud, succeed
from tools import guests

DEFINITION = """\
name = "shop"
[region.fra]
[region.ams]
[host.fra1]
region = "fra"
address = "127.0.1.1:{agent}"
cores = 2
memory = "1GiB"
disk = "4GiB"
[host.ams1]
region = "ams"
address = "127.0.2.1:{agent}"
cores = 2
memory = "1GiB"
disk = "4GiB"
[process.web]
binary = "build/web.wasm"
hosts = ["fra1", "ams1"]
cores = "0.5"
memory = "32MiB"
config = {{ "/etc/web.toml" = "conf/web.toml" }}
listen = {{ http = "host:{web}/tcp" }}
ready = {{ tcp = "http", path = "/healthz", within = "60s" }}
update = {{ drain = "5s" }}
[process.kv]
binary = "build/kv.wasm"
hosts = ["fra1"]
cores = "0.5"
memory = "32MiB"
volume = {{ "/data" = "kv-data" }}
listen = {{ kv = "host:{kv}/tcp" }}
[volume.kv-data]
size = "16MiB"
"""
HOSTS = {"fra1": "127.0.1.1", "ams1": "127.0.2.1"}
DEADLINE_S = 60.0


class Shop:
    """The directory of the cloud, and what its owner does to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.agent_port, self.web_port, self.kv_port = (free_port() for _ in range(3))
        succeed("init", root, "--operator", "ada")
        for folder in ("build", "conf"):
            (root / folder).mkdir()
        shutil.copyfile(guests.path("kv"), root / "build" / "kv.wasm")
        self.use(web="web-1", greeting="hello")
        self.definition.write_text(DEFINITION.format(agent=self.agent_port, web=self.web_port, kv=self.kv_port))

    @property
    def definition(self) -> Path:
        return self.root / "cloud.toml"

    def use(self, *, web: str | None = None, greeting: str | None = None) -> None:
        """Put another program or configuration where the definition finds it."""
        if web is not None:
            shutil.copyfile(guests.path(web), self.root / "build" / "web.wasm")
        if greeting is not None:
            (self.root / "conf" / "web.toml").write_text(f'greeting = "{greeting}"\n')

    def run(self, *words: str | Path) -> Result:
        return lowcloud(*words, cwd=self.root)

    def succeed(self, *words: str | Path) -> Result:
        return succeed(*words, cwd=self.root)

    def json(self, *words: str | Path) -> Any:
        return self.succeed(*words, "--json").json

    def apply(self, **what: str) -> dict[str, Any]:
        """Change something and apply it."""
        self.use(**what)
        applied: dict[str, Any] = self.json("apply", "--yes")
        return applied

    def answer(self, host: str) -> str:
        """What the web server of a host says."""
        connection = http.client.HTTPConnection(HOSTS[host], self.web_port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().read().decode()

    def answers(self) -> set[str]:
        return {self.answer(host) for host in HOSTS}

    def process(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(row for row in self.json("ps") if row["name"] == name)
        return found

    def running(self) -> list[int]:
        """The processes of this cloud that are on this machine: agents, supervisors, zygotes."""
        return [pid for pid, words in _processes() if str(self.root).encode() in words]


@contextlib.contextmanager
def shop_that_is_up(root: Path) -> Iterator[Shop]:
    shop = Shop(root)
    shop.succeed("up", "--detach")
    try:
        yield shop
    finally:
        shop.run("down")
        assert not shop.running()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.02)


def _processes() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes()
