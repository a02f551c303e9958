"""The main job on one machine, with nothing pretended: real agents, real guests, real load, real rollback.

Two hosts in two regions are two agent processes on two loopback addresses. A load generator, a process of its own,
opens connections as fast as it can and keeps others open, from before the first change to after the last. An answer
that is not one of the bodies that may be served at some time counts as failed. What is printed is what was measured.

The scenario is a list of functions on one `Demo`; `tools.commands.demo` runs them and cleans up.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.api.journal import JournalEntry
from deployer.applying.outcome import Applied, CallDone, Outcome
from deployer.cloud.cloud import Cloud
from deployer.history import audit
from deployer.history import release as releases
from deployer.history.audit import timeline
from deployer.history.verify import verify
from deployer.planning.plan import Kind, Plan, blobs_of
from tools import guests
from tools.commands.audit import show_spans, span_as_dict
from tools.deploying import (
    carried_out,
    open_site,
    planned,
    planned_rollback,
    rollback_target,
    rolled_back,
    version_of_file,
)
from tools.errors import CommandError
from tools.load import Load, LoadProcess, Report
from tools.local_cloud import local_hosts, start_agents, stop_agents
from tools.output import Output, shorten, size
from tools.showing import show_plan

ADDRESSES: Final = {"fra1": "127.0.1.1", "ams1": "127.0.2.1"}
FIRST_PORT: Final = 7401
PORTS: Final = 3
"""Of the agents, of the web server, of the key-value server."""
PORTS_TRIED: Final = 1000
GREETINGS: Final = ("hello", "good day")
BODY: Final = r"(?P<config>hello|good day) from web (?P<version>1\.0|2\.0)\n"
"""The only bodies that the web server may serve at any time of the demo."""
LOAD_SECONDS: Final = 100.0
"""Bounds the load, whatever becomes of the demo."""
HTTP_TIMEOUT_S: Final = 5.0
SWAPS: Final = (Kind.REPLACE, Kind.CONFIGURE)
TAKE_OVER_STEPS: Final = ("spawn", "ready", "flip")
"""From the wish to the first connection of the new version; what follows (`drain`) serves nobody new."""

DEFINITION: Final = """\
name = "demo"

[region.fra]
title = "Frankfurt"
[region.ams]
title = "Amsterdam"

[host.fra1]
region = "fra"
address = "{fra1}:{agent}"
cores = 2
memory = "1GiB"
disk = "4GiB"

[host.ams1]
region = "ams"
address = "{ams1}:{agent}"
cores = 2
memory = "1GiB"
disk = "4GiB"

[process.web]
binary = "build/web.wasm"
args = ["--port", "{web}"]
hosts = ["fra1", "ams1"]
cores = "0.5"
memory = "32MiB"
config = {{ "/etc/web.toml" = "conf/web.toml" }}
listen = {{ http = "host:{web}/tcp" }}
ready = {{ tcp = "http", path = "/healthz", within = "20s" }}
update = {{ drain = "10s" }}

[process.kv]
binary = "build/kv.wasm"
args = ["--port", "{kv}"]
hosts = ["fra1"]
cores = "0.25"
memory = "32MiB"
volume = {{ "/data" = "kv-data" }}
listen = {{ kv = "host:{kv}/tcp" }}

[process.client]
binary = "build/client.wasm"
args = ["--interval-ms", "1000"]
hosts = ["ams1"]
cores = "0.25"
memory = "32MiB"
connect = {{ kv = "kv@fra1:{kv}/tcp" }}

[volume.kv-data]
size = "16MiB"
"""


class DemoFailed(CommandError):
    """Something did not go as the demo shows it."""


class Change(msgspec.Struct, frozen=True):
    """One apply under load."""

    what: str
    applied: Applied
    bytes_whole: int
    """The size of every blob that its calls needed on each host, as if each had been sent whole."""


class Demo:
    """The state of one run. `directory` must not hold a cloud."""

    def __init__(self, directory: Path, out: Output) -> None:
        self.directory = directory
        self.out = out
        self.quiet = Output(sys.stdout, sys.stderr, as_json=True)
        """For parts whose own words are not part of the story."""
        self.changes: list[Change] = []
        self.report: Report | None = None
        self.rollback_identical = False
        self.timeline: list[dict[str, Any]] = []
        self.findings: int | None = None
        """What the audit found wrong."""
        self._cloud: Cloud | None = None
        self._ports = _free_ports(PORTS)
        self._title = 0

    # --- what the scenario consists of ------------------------------------------------------------------------------

    def run(self) -> None:
        """The whole scenario. Raises DemoFailed, and what the parts raise."""
        self.make()
        self.start()
        first = self.deploy_first()
        before = self.answers()
        with self.load() as load:
            self.replace_binary()
            self.change_configuration()
            self.roll_back("roll back: the configuration before")
            last = self.roll_back("roll back again: the binary before")
            self.report = load.report()
        self.compare(first, last, before, self.answers())
        self.audit()
        self.sum_up()

    def make(self) -> None:
        self._cloud = Cloud.create(self.directory, operator="demo")
        self.title("a cloud with two hosts in two regions")
        for folder in ("build", "conf"):
            (self.directory / folder).mkdir(exist_ok=True)
        for name in ("kv", "client"):
            shutil.copyfile(guests.path(name), self.directory / "build" / f"{name}.wasm")
        self.write_binary("web-1")
        self.write_configuration(GREETINGS[0])
        agent, web, kv = self._ports
        text = DEFINITION.format(agent=agent, web=web, kv=kv, **ADDRESSES)
        self.cloud.definition_path.write_text(text)
        self.out.line(f"   {self.directory}: lowcloud.toml, {self.cloud.definition_path.name}, build/, conf/")

    def start(self) -> None:
        agent = self._ports[0]
        for one in start_agents(self.cloud, {host: f"{ip}:{agent}" for host, ip in ADDRESSES.items()}):
            self.out.line(f"   agent of {one.host} at {one.address}, process {one.pid}")

    def deploy_first(self) -> Applied:
        self.title("push web 1.0 and its configuration, plan, apply")
        for name in ("build/web.wasm", "conf/web.toml", "build/kv.wasm", "build/client.wasm"):
            stored = self.cloud.store.put((self.directory / name).read_bytes(), name=name)
            self.out.line(
                f"   {shorten(stored.digest)}  {name}, {size(stored.size)}, {size(stored.stored_bytes)} stored"
            )
        return self.apply("deploy web 1.0", show=True)

    def replace_binary(self) -> None:
        self.title("replace web 1.0 by web 2.0, under load")
        self.write_binary("web-2")
        self.apply("replace the binary")

    def change_configuration(self) -> None:
        self.title("change only the configuration, under load")
        self.write_configuration(GREETINGS[1])
        self.apply("change the configuration")

    def apply(self, what: str, *, show: bool = False) -> Applied:
        version = version_of_file(self.cloud, None, self.out)
        plan, sizes = asyncio.run(planned(self.cloud, version, None, self.quiet))
        if show:
            show_plan(plan, sizes, self.out)
        return self.note(what, plan, asyncio.run(carried_out(self.cloud, plan, self.quiet, message=what)))

    def roll_back(self, what: str) -> Applied:
        self.title(f"{what}, under load")
        to = rollback_target(self.cloud)
        plan, _ = asyncio.run(planned_rollback(self.cloud, to, None, self.quiet))
        return self.note(what, plan, asyncio.run(rolled_back(self.cloud, plan, to, self.quiet)))

    def note(self, what: str, plan: Plan, applied: Applied) -> Applied:
        """Keep and print what came of a change. Raises DemoFailed."""
        self.changes.append(Change(what, applied, self.whole_size(plan)))
        for call in applied.calls:
            steps = ", ".join(f"{step} {ms:.1f} ms" for step, ms in call.steps.items())
            self.out.line(f"   {call.kind} {call.subject}@{call.host}: {call.message or steps or 'done'}")
        self.out.line(
            f"   release {shorten(applied.release)}, {size(applied.bytes_sent)} sent, {applied.seconds:.2f} s"
        )
        if applied.interrupted:  # an apply that is told to stop finishes its calls and says so
            raise KeyboardInterrupt
        if applied.outcome is not Outcome.APPLIED:
            trouble = applied.trouble or "; ".join(f"{c.subject}@{c.host}: {c.message}" for c in applied.failed)
            raise DemoFailed(f"{what}: {applied.outcome}: {trouble}", hint="`--keep` leaves it for inspection")
        return applied

    # --- load -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def load(self) -> Iterator[LoadProcess]:
        targets = tuple(f"{ip}:{self._ports[1]}" for ip in ADDRESSES.values())
        with LoadProcess(Load(targets=targets, expect=BODY, opening=3, keeping=1, seconds=LOAD_SECONDS)) as load:
            self.out.line("   from here on a load generator asks both web servers as fast as it can")
            yield load

    def answers(self) -> dict[str, bytes]:
        """What each web server answers now, byte for byte."""
        return {host: _body(ip, self._ports[1]) for host, ip in ADDRESSES.items()}

    # --- results ----------------------------------------------------------------------------------------------------

    def compare(self, first: Applied, last: Applied, before: dict[str, bytes], after: dict[str, bytes]) -> None:
        """Is what the rollback brought back the first version, bit for bit?"""
        store = self.cloud.store
        definitions = [releases.read(store, _release(applied)).definition for applied in (first, last)]
        binary = releases.read_definition(store, definitions[1]).process["web"].binary
        same_file = store.read(binary) == guests.path("web-1").read_bytes()
        self.rollback_identical = definitions[0] == definitions[1] and before == after and same_file

    def audit(self) -> None:
        """What the hosts' journals say of it, and whether they hold together with the releases."""
        self.title("the audit: what ran, from when to when, by which release")
        journals = asyncio.run(self._journals())
        spans = [span for span in timeline(journals) if span.process == "web"]
        show_spans(spans, self.out, indent="   ")
        self.timeline = [span_as_dict(span) for span in spans]
        verified = verify(self.cloud.store, journals)
        self.findings = len(verified.findings)
        wrong = "nothing wrong" if not self.findings else f"{self.findings} wrong: {verified.findings[0].what}"
        self.out.line(f"   {verified.entries} journal entries and {verified.releases} releases verified: {wrong}")

    async def _journals(self) -> dict[str, list[JournalEntry]]:
        async with open_site(self.cloud) as site:
            return (await audit.journals(site.fleet)).all()

    def sum_up(self) -> None:
        result = self.result()
        self.title("what it cost")
        self.out.line(f"   served     {result['served']} requests over {result['connections']} connections")
        self.out.line(f"   failed     {result['failed']}")
        for reason, count in result["reasons"].items():
            self.out.line(f"              {count} x {reason}")
        median = statistics.median(result["swap_ms"])
        self.out.line(
            f"   swaps      {result['swaps']}, from the call to the first new connection:"
            f" median {median:.1f} ms, longest {max(result['swap_ms']):.1f} ms"
        )
        sent, whole = result["bytes_sent"], result["bytes_whole"]
        self.out.line(f"   sent       {size(sent)}; every file whole, with each change, would be {size(whole)}")
        same = "yes: the same definition, the same binary, the same answers" if self.rollback_identical else "NO"
        self.out.line(f"   rollback   bit for bit? {same}")

    def result(self) -> dict[str, Any]:
        """The JSON of the demo."""
        if self.report is None:
            raise DemoFailed("the load generator gave no report")
        swaps = [call for change in self.changes for call in change.applied.calls if call.kind in SWAPS]
        return {
            "served": self.report.served,
            "failed": self.report.failed,
            "swaps": len(swaps),
            "swap_ms": [take_over_ms(call) for call in swaps],
            "bytes_sent": sum(change.applied.bytes_sent for change in self.changes),
            "bytes_whole": sum(change.bytes_whole for change in self.changes),
            "rollback_identical": self.rollback_identical,
            "reasons": self.report.reasons,
            "connections": self.report.connections,
            "latency_ms": self.report.latency_ms,
            "load_seconds": self.report.seconds,
            "seen": list(self.report.seen),
            "changes": [
                {
                    "what": change.what,
                    "release": change.applied.release,
                    "calls": len(change.applied.calls),
                    "seconds": change.applied.seconds,
                    "bytes_sent": change.applied.bytes_sent,
                    "bytes_whole": change.bytes_whole,
                }
                for change in self.changes
            ],
            "audit": self.timeline,
            "audit_findings": self.findings,
            "directory": str(self.directory),
        }

    @property
    def went_well(self) -> bool:
        served = self.report is not None and self.report.served > 0 and not self.report.failed
        return served and self.rollback_identical and self.findings == 0

    def what_next(self) -> None:
        """For `--keep`: what to try."""
        _, web, _ = self._ports
        self.title("it stays; try")
        for line in (
            f"cd {self.directory}",
            "lowcloud ps",
            f"curl http://{ADDRESSES['fra1']}:{web}/",
            "lowcloud logs client@ams1 -f",
            "lowcloud history",
            "$EDITOR conf/web.toml && lowcloud apply",
            "lowcloud audit at -1m",
            "lowcloud down                    # ends it",
        ):
            self.out.line(f"   {line}")

    # --- ending -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End every process. Does nothing where none was started."""
        if self._cloud is not None:
            stop_agents(self._cloud, local_hosts(self._cloud), self.out.remark)

    def close(self) -> None:
        if self._cloud is not None:
            self._cloud.close()

    # --- parts ------------------------------------------------------------------------------------------------------

    @property
    def cloud(self) -> Cloud:
        if self._cloud is None:
            raise DemoFailed("the cloud is not made yet")
        return self._cloud

    def title(self, text: str) -> None:
        self._title += 1
        self.out.line(f"{self._title}. {text}")
        self.out.flush()

    def write_binary(self, guest: str) -> None:
        shutil.copyfile(guests.path(guest), self.directory / "build" / "web.wasm")

    def write_configuration(self, greeting: str) -> None:
        (self.directory / "conf" / "web.toml").write_text(f'greeting = "{greeting}"\n')

    def whole_size(self, plan: Plan) -> int:
        blobs = {(step.host, blob) for step in plan.steps() if step.spec for blob in blobs_of(step.spec)}
        return sum(self.cloud.store.stat(blob).size for _, blob in blobs)


def take_over_ms(call: CallDone) -> float:
    """How long a swap took from the call to the instant from which new connections reach the new version."""
    return round(sum(call.steps.get(step, 0.0) for step in TAKE_OVER_STEPS), 3)


def _release(applied: Applied) -> str:
    if applied.release is None:
        raise DemoFailed("an apply made no release")
    return applied.release


def _body(ip: str, port: int) -> bytes:
    connection = http.client.HTTPConnection(ip, port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    """Ports that are free on both hosts' addresses."""
    found = [port for port in _candidates() if all(_is_free(ip, port) for ip in ADDRESSES.values())]
    if len(found) < count:
        raise DemoFailed(f"no free ports from {FIRST_PORT} on", hint="end what listens there")
    return found[:count]


def _candidates() -> range:
    """Where to look; each demo begins elsewhere, so that two at the same time do not choose the same. Below what the
    kernel hands out to outgoing connections, which could take one before its server has it."""
    first = FIRST_PORT + os.getpid() * PORTS % PORTS_TRIED
    return range(first, first + PORTS_TRIED)


def _is_free(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((ip, port))
        except OSError:
            return False
    return True
