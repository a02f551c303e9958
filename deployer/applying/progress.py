"""How long work tells what it is doing, without knowing who shows it: a command line, a dashboard, a test, nobody."""

from __future__ import annotations

from typing import Literal, Protocol

from deployer.planning.plan import Step

Phase = Literal["observe", "undecided", "transfer", "stage", "release", "apply", "probation", "revert", "catch-up"]


class Progress(Protocol):
    """All methods are called from the event loop's thread and must return at once."""

    def phase(self, phase: Phase, hosts: int) -> None:
        """Something begins that concerns so many hosts."""
        ...

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:
        """So much of what a host lacks has been sent. The total is an estimate until the last call, where both are
        equal."""
        ...

    def step(self, step: Step, state: Literal["begins", "done", "failed"], detail: str = "") -> None:
        """A call of the plan."""
        ...


class Quiet:
    """Shows nothing."""

    def phase(self, phase: Phase, hosts: int) -> None:
        """Nobody looks."""

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:
        """Nobody looks."""

    def step(self, step: Step, state: Literal["begins", "done", "failed"], detail: str = "") -> None:
        """Nobody looks."""
