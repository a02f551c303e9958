"""The web servers that the benchmarks of the runtime start and swap: C's from the wheel, others where they were built.

`examples/python-web` and `examples/js-web` say how those are built (docs/guests.md); they are given as files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple, get_args

from agent.api.processes import Endpoint
from agent.daemon import networking
from agent.runtime import GuestOrder, Network, Preopen
from agent.sandbox import engine
from tools import guests

MEMORY_BYTES = 64 << 20
OTHERS = ("python", "js")
BOTH = "both"


class Served(NamedTuple):
    """A web server, compiled: `codes` are the versions that swaps go round."""

    name: str
    codes: tuple[Path, ...]
    path: str
    """What its health is asked at."""
    preopens: tuple[Preopen, ...] = ()
    takes_port: bool = False
    """Whether it wants its port as an argument beside the environment."""
    closes: bool = False
    """Whether it ends a connection where the request asks for it."""

    def arguments(self, port: int) -> tuple[str, ...]:
        return ("--port", str(port)) if self.takes_port else ()

    def order(self, directory: Path, number: int, port: int, network: Network = "listeners") -> GuestOrder:
        return GuestOrder(
            guest=f"{self.name}-{number}-{port}",
            process=f"{self.name}-{port}",
            code_path=str(self.codes[number % len(self.codes)]),
            code_kind="component",
            args=self.arguments(port),
            env={},
            preopens=self.preopens,
            listen={"http": Endpoint("127.0.0.1", port)},
            connect={},
            memory_bytes=MEMORY_BYTES,
            cpus=(),
            output_path=str(directory / f"{self.name}.log"),
            network=network,
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    for name in OTHERS:
        parser.add_argument(f"--{name}", type=Path, metavar="WASM", help=f"examples/{name}-web, built")


def add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=[*get_args(Network), BOTH], default=BOTH, help="how guests are connected")


def networks_of(options: argparse.Namespace) -> list[Network]:
    """Those to measure; a namespace only where this machine can make one."""
    wanted: list[Network] = [*get_args(Network)] if options.network == BOTH else [options.network]
    return [one for one in wanted if one == "listeners" or not networking.why_not()]


def compile_all(options: argparse.Namespace, directory: Path) -> list[Served]:
    """C's server, and those whose files are given."""
    config = directory / "config"
    config.mkdir()
    (config / "greeter.json").write_text('{ "greeting": "hello" }')
    preopens = (Preopen(str(config), "/etc", False),)
    versions = tuple(_compile(guests.path(name), directory) for name in ("web-1", "web-2"))
    served = [Served("c", versions, "/healthz", takes_port=True, closes=True)]
    given = ((name, getattr(options, name)) for name in OTHERS)
    served += [Served(name, (_compile(file, directory / name),), "/health", preopens) for name, file in given if file]
    return served


def _compile(binary: Path, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    code = directory / f"{binary.stem}.code"
    code.write_bytes(engine.compile_binary(binary.read_bytes())[1])
    return code
