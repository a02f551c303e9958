"""The hosts' agents as one thing: connections that are opened when they are first needed, and one question to many.

Asking never fails as a whole because one host does: what came back and what did not are told apart, and the caller
decides. Bounded: at most `AT_ONCE` hosts are asked at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from agent.client.client import AgentClient
from agent.client.errors import AgentError
from deployer.errors import HostsUnreachable, HostUnknown
from deployer.language.schema import Definition

AT_ONCE: Final = 64

T = TypeVar("T")
U = TypeVar("U")


class Answers(Generic[T]):
    """What hosts answered, and why others did not."""

    def __init__(self, results: dict[str, T], failures: dict[str, AgentError]) -> None:
        self.results = results
        self.failures = failures

    def all(self) -> dict[str, T]:
        """The results, where every host answered. Raises HostsUnreachable."""
        if self.failures:
            raise HostsUnreachable({host: str(error) for host, error in self.failures.items()})
        return self.results


class Fleet:
    """Use as an asynchronous context manager. `addresses`: address:port of each host's agent, by the host's name.
    `connect`: makes a host's client from its name and address, where that should be another than the real one."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        credentials: Path,
        *,
        connect: Callable[[str, str], AgentClient] | None = None,
    ) -> None:
        self.addresses = dict(addresses)
        self._connect = connect or (lambda host, address: AgentClient(host, address, credentials))
        self._clients: dict[str, asyncio.Task[AgentClient]] = {}
        self._stack = AsyncExitStack()

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted(self.addresses))

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._clients.values(), return_exceptions=True)
        await self._stack.__aexit__(kind, error, trace)

    def learn(self, addresses: Mapping[str, str]) -> None:
        """Where hosts are; those that are known already may have moved."""
        for host, address in addresses.items():
            if self.addresses.get(host, address) != address:
                self._clients.pop(host, None)  # closed with all others
            self.addresses[host] = address

    async def client(self, host: str) -> AgentClient:
        """The client of a host; it connects when it is used. Raises HostUnknown."""
        if host not in self.addresses:
            raise HostUnknown(host, self.hosts)
        if host not in self._clients:
            made = self._connect(host, self.addresses[host])
            self._clients[host] = asyncio.ensure_future(self._stack.enter_async_context(made))
        return await asyncio.shield(self._clients[host])

    async def each(self, hosts: Iterable[str], ask: Callable[[AgentClient], Awaitable[T]]) -> Answers[T]:
        """Ask each host, side by side. Raises HostUnknown, and what `ask` raises that is no AgentError."""
        results: dict[str, T] = {}
        failures: dict[str, AgentError] = {}

        async def one(host: str) -> None:
            try:
                results[host] = await ask(await self.client(host))
            except AgentError as error:
                failures[host] = error

        await for_each(sorted(set(hosts)), one, at_once=AT_ONCE)
        return Answers(dict(sorted(results.items())), dict(sorted(failures.items())))


def addresses_of(*definitions: Definition | None) -> dict[str, str]:
    """Where the hosts of these definitions are; of a host in several, the last one counts."""
    return {
        name: host.address for definition in definitions if definition for name, host in sorted(definition.host.items())
    }


async def for_each(items: Iterable[U], act: Callable[[U], Awaitable[object]], *, at_once: int) -> None:
    """Do something with each item, at most so many at a time. The first that fails ends the others, and its exception
    is raised as it is."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: U) -> None:
        async with gate:
            await act(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(one(item))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
