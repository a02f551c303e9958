"""An apply that is watched from outside, and things that happen meanwhile.

Time counts from the moment the command begins to send. A host has a blob when its store has it, whoever says what; what
crossed a border is what the routers counted.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cas.digest import digest_of
from cas.store import Store
from tests.world.fleet import Fleet

LOOK_S: Final = 0.02
COMMAND_S: Final = 600.0
PATIENCE_S: Final = 300.0
"""For hosts to have it after the command has ended."""
BEGINS: Final = "sending to"
"""What the command says when it begins to send."""


class Event(NamedTuple):
    """Something that happens once."""

    due: Callable[[float, dict[str, float]], bool]
    """Given the time, and which hosts have the blob since when."""
    act: Callable[[subprocess.Popen[str]], object]
    """Given the command."""


class Watched(NamedTuple):
    """What was seen of one apply."""

    code: int
    """Of the command; negative where it was killed."""
    seconds: dict[str, float]
    """By host, when its store had the module and all other files."""
    command_s: float
    """Until the command ended."""
    border_bytes: dict[str, int]
    """Into each region."""
    form_bytes: int
    """What it had then, as it travels."""
    messages: str
    """Of the command, each with its time."""

    @property
    def last_s(self) -> float:
        return max(self.seconds.values(), default=float("nan"))

    def copies(self, region: str) -> float:
        """How many times that came into a region, by the bytes."""
        return self.border_bytes[region] / self.form_bytes


def apply(
    fleet: Fleet,
    module: bytes,
    *,
    more: Sequence[bytes] = (),
    greeting: str = "hello",
    hosts: Sequence[str] = (),
    dead: Sequence[str] = (),
    events: Sequence[Event] = (),
    within_s: float = COMMAND_S,
) -> Watched:
    """Deploy a module and `more` files to these hosts (to all), and look until the command has ended, all events have
    happened, and all hosts but the `dead` have all of them, or for so long."""
    fleet.write(module, more=more, greeting=greeting, hosts=hosts)
    blobs = [digest_of(data) for data in (module, *more)]
    awaited = set(hosts or fleet.hosts) - set(dead)
    before = fleet.world.border_bytes()
    waiting = list(events)
    seconds: dict[str, float] = {}
    with fleet.command("apply", "--yes") as process:
        said = _Said(process)
        began_s = said.wait_for(BEGINS)
        command_s = now_s = 0.0
        while now_s < within_s:
            now_s = time.perf_counter() - began_s
            for host in awaited - set(seconds) - set(fleet.lacking(blobs)):
                seconds[host] = now_s
            for event in [event for event in waiting if event.due(now_s, seconds)]:
                waiting.remove(event)
                event.act(process)
            if not command_s and process.poll() is not None:
                command_s = now_s
            if command_s and not waiting and (len(seconds) == len(awaited) or now_s > command_s + PATIENCE_S):
                break
            time.sleep(LOOK_S)
        process.kill()
        code = process.wait()
        said.end()
    after = fleet.world.border_bytes()
    crossed = {region: after[region] - before[region] for region in after}
    with Store.open(fleet.cloud / ".lowcloud" / "store") as store:
        form_bytes = sum(store.stat(blob).stored_bytes for blob in blobs)
    return Watched(code, seconds, command_s, crossed, form_bytes, said.text)


class _Said:
    """What a command says on its standard error, and when."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._pipe = process.stderr
        self._lines: list[tuple[float, str]] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._pipe:
            with self._news:
                self._lines.append((time.perf_counter(), line))
                self._news.notify()
        with self._news:
            self._ended = True
            self._news.notify()

    def wait_for(self, words: str) -> float:
        """When a line with these words was said."""
        with self._news:
            while True:
                for said_s, line in self._lines:
                    if words in line:
                        return said_s
                if self._ended:
                    raise RuntimeError(f"the command never said {words!r}: {self.text}")
                self._news.wait()

    def end(self) -> None:
        """The command has ended; read the rest."""
        self._reader.join()

    @property
    def text(self) -> str:
        """All of it, each line with its time. After the end of the command, or of what was waited for."""
        first_s = self._lines[0][0] if self._lines else 0.0
        return "".join(f"{said_s - first_s:7.2f} {line}" for said_s, line in self._lines)
