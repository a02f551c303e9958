"""Connections to the hosts that last as long as a command, also while a person reads the plan and answers.

Greeting a host costs three round trips and some kilobytes of certificates; across the world that is what an apply of
a small change would mostly consist of, if planning and carrying out each did it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from deployer.applying.fleet import Fleet

if TYPE_CHECKING:
    from deployer.cloud.cloud import Cloud

T = TypeVar("T")


class Connections:
    """Use as a context manager. `fleet` learns its hosts from whoever uses it (`tools.deploying.open_site`)."""

    def __init__(self, cloud: Cloud) -> None:
        self._runner = asyncio.Runner()
        self.fleet = Fleet({}, cloud.credentials)

    def __enter__(self) -> Self:
        self.run(self.fleet.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self.fleet.__aexit__(kind, error, trace))
        finally:
            self._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """As `asyncio.run`, each time in the same loop."""
        return self._runner.run(work)
