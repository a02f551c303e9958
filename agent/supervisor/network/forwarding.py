"""The one setting of the machine that guests in namespaces need: that it forwards packets.

It belongs to all agents of a machine. Where the machine forwards already, it is left alone. Where not, the first agent
switches it on, after a rule that lets through guests' packets only, and those that were forwarded before (it may be on
for single interfaces); the last one puts everything back. What was changed is kept in a file under `/run`, which is
gone after a restart of the machine as the change itself.

IPv6 is switched on only when a guest needs it. The kernel then stops listening to routers on interfaces where
`accept_ra` is 1, so there it is made 2, which means "also when forwarding".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from agent.supervisor.network.nftables import Nftables
from agent.supervisor.network.ruleset import GUARD_TABLE, guard

RUN: Final = Path("/run")
SETTINGS: Final = Path("/proc/sys/net")
SO_NETNS_COOKIE: Final = 71
"""A number that no other network namespace has, as long as the machine runs (Linux 5.14)."""
_SWITCHES: Final = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
_GENERAL: Final = ("all", "default")
_OTHERS: Final = f"{GUARD_TABLE}-"


class Changed(msgspec.Struct):
    """What agents have changed on this machine."""

    versions: list[int] = []
    forwarded: list[str] = []
    """Settings of single interfaces that were on."""
    hears_routers: list[str] = []
    """Settings `accept_ra` that were 1."""


class Forwarding:
    """See the module's head."""

    def __init__(self, filter_: Nftables, *, run: Path = RUN, settings: Path = SETTINGS) -> None:
        self._filter = filter_
        self._run = run
        self._settings = settings

    def switch_on(self, version: int) -> None:
        """Call it when this agent's rules are there: another one that ends then leaves it on. Raises OSError."""
        with self._changed() as (changed, save):
            if self._forwards(version):
                return
            changed.forwarded += self._that_are("1", f"ipv{version}/conf", "forwarding")
            self._filter.run(f"table inet {GUARD_TABLE}\ndelete table inet {GUARD_TABLE}\n{guard(_names(changed))}")
            if version == 6:
                changed.hears_routers += self._keep_hearing_routers()
            changed.versions.append(version)
            save(changed)
            self._switch(version).write_text("1")

    def guard_again(self) -> None:
        """Where somebody has removed the rule that goes with it. Raises OSError."""
        if not self._file().exists():
            return
        with self._changed() as (changed, _):
            if changed.versions and GUARD_TABLE not in self._filter.tables():
                self._filter.run(guard(_names(changed)))

    def switch_off_after_last(self) -> None:
        """Put back what was changed, unless another agent still needs it. Raises OSError."""
        if not self._file().exists():
            return
        with self._changed() as (changed, save):
            if any(name.startswith(_OTHERS) for name in self._filter.tables()):
                return
            for version in changed.versions:
                self._switch(version).write_text("0")
            for setting in (*changed.forwarded, *changed.hears_routers):
                with contextlib.suppress(FileNotFoundError):  # the interface is gone
                    (self._settings / setting).write_text("1")
            save(None)
            if GUARD_TABLE in self._filter.tables():
                self._filter.run(f"delete table inet {GUARD_TABLE}")

    def _forwards(self, version: int) -> bool:
        return self._switch(version).read_text().strip() != "0"

    def _switch(self, version: int) -> Path:
        return self._settings / _SWITCHES[version]

    def _keep_hearing_routers(self) -> list[str]:
        found = self._that_are("1", "ipv6/conf", "accept_ra")
        for setting in found:
            with contextlib.suppress(FileNotFoundError):  # the interface is gone
                (self._settings / setting).write_text("2")
        return found

    def _that_are(self, value: str, directory: str, name: str) -> list[str]:
        """Settings of single interfaces that have this value. Interfaces come and go meanwhile: those of other agents'
        guests, too."""
        found = []
        for path in (self._settings / directory).glob(f"*/{name}"):
            with contextlib.suppress(FileNotFoundError):
                if path.parent.name not in _GENERAL and path.read_text().strip() == value:
                    found.append(str(path.relative_to(self._settings)))
        return found

    def _file(self) -> Path:
        """One for each network namespace that agents run in: each has settings of its own."""
        with socket.socket(socket.AF_UNIX) as here:
            cookie = int.from_bytes(here.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        return self._run / f"lowcloud-forwarding-{cookie}"

    @contextlib.contextmanager
    def _changed(self) -> Iterator[tuple[Changed, Callable[[Changed | None], None]]]:
        """What was changed, and how to say otherwise, while no other agent does either."""
        lock = os.open(self._run / "lowcloud-forwarding.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self._file()

            def save(changed: Changed | None) -> None:
                if changed is None:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(msgspec.json.encode(changed))

            yield (msgspec.json.decode(file.read_bytes(), type=Changed) if file.exists() else Changed()), save
        finally:
            os.close(lock)


def _names(changed: Changed) -> list[str]:
    """Interfaces for which the machine forwarded."""
    return sorted({Path(setting).parent.name for setting in changed.forwarded})
