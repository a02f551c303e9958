"""Other ways to start a web server: a cold interpreter, the wasmtime command, a container; to the first reply each.

A peer is a command that starts it. The clock runs from the fork of that command to the end of the answer's head; CPU
time is that of all processes of the command, after they were ended.
"""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.served import MEMORY_BYTES, Served

REQUEST = b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n"
WITHIN_S = 20.0
RETRY_S = 0.0005


class Peer(NamedTuple):
    """`command` starts the server at a port; `end` ends what killing the command does not."""

    name: str
    command: Callable[[int], list[str]]
    end: Callable[[], None] = lambda: None


class Started(NamedTuple):
    wall_ms: float
    cpu_ms: float


def time_peer(peer: Peer, port: int) -> Started:
    """Start it once. Raises TimeoutError where it never answers."""
    command = peer.command(port)
    cpu = _children_cpu_s()
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_reply(port)
        wall = time.perf_counter() - begun
    finally:
        peer.end()
        process.kill()
        process.wait()
    return Started(wall * 1e3, (_children_cpu_s() - cpu) * 1e3)


def wait_reply(port: int) -> None:
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as connection:
                connection.sendall(REQUEST)
                if b" " in connection.recv(65536):
                    return
        except OSError:
            time.sleep(RETRY_S)
    raise TimeoutError(f"nothing answers at port {port}")


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cold_interpreter(served: Served) -> Peer:
    """A fresh Python that loads the engine and the same compiled code."""

    def command(port: int) -> list[str]:
        environment = {"LOWCLOUD_LISTEN_HTTP": f"127.0.0.1:{port}"}
        directories = [(p.host_path, p.guest_path, p.writable) for p in served.preopens]
        program = f"""
from agent.sandbox.engine import Directory, Engine, Program
engine = Engine()
directories = tuple(Directory(*d) for d in {directories!r})
program = Program(("web", *{served.arguments(port)!r}), {environment!r}, directories, {MEMORY_BYTES}, True, False)
engine.prepare(engine.load({str(served.codes[0])!r}, "component"), program).run(lambda: None)
"""
        return [sys.executable, "-c", program]

    return Peer("cold python + wasmtime", command)


def wasmtime_command(wasmtime: str, served: Served, binary: Path, directory: Path) -> Peer:
    """The wasmtime command, with code that it compiled before."""
    code = directory / f"{served.name}.cwasm"
    subprocess.run([wasmtime, "compile", str(binary), "-o", str(code)], check=True)
    dirs = [f"--dir={p.host_path}::{p.guest_path}" for p in served.preopens]

    def command(port: int) -> list[str]:
        environment = f"LOWCLOUD_LISTEN_HTTP=127.0.0.1:{port}"
        options = ["-S", "tcp,inherit-network", "--allow-precompiled", "--env", environment, *dirs]
        return [wasmtime, "run", *options, str(code), *served.arguments(port)]

    version = subprocess.run([wasmtime, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return Peer(f"wasmtime command {version}", command)


def container(runtime: str, busybox: str, directory: Path) -> Peer:
    """A container with a static busybox's httpd, in the host's network."""
    bundle = directory / "bundle"
    for name in ("bin", "www", "proc", "dev"):
        (bundle / "rootfs" / name).mkdir(parents=True)
    shutil.copy(busybox, bundle / "rootfs" / "bin" / "busybox")
    (bundle / "rootfs" / "www" / "index.html").write_text("hello\n")
    subprocess.run([runtime, "spec"], cwd=bundle, check=True)
    specification = json.loads((bundle / "config.json").read_text())
    specification["process"]["terminal"] = False
    namespaces = specification["linux"]["namespaces"]
    specification["linux"]["namespaces"] = [n for n in namespaces if n["type"] != "network"]
    name = "lowcloud-benchmark"

    def command(port: int) -> list[str]:
        httpd = ["/bin/busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", "/www"]
        specification["process"]["args"] = httpd
        (bundle / "config.json").write_text(json.dumps(specification))
        return [runtime, "run", "--bundle", str(bundle), name]

    def end() -> None:
        subprocess.run([runtime, "delete", "--force", name], check=False, capture_output=True)

    return Peer(f"{Path(runtime).name} with busybox httpd", command, end)
