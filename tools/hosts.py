"""Which hosts a command talks to, and the naming of processes as `name@host`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.errors import UsageError
from tools.output import counted, printable, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from msgspec import UnsetType

    from agent.api.answers import Outcome
    from agent.api.calls import Call
    from agent.api.facts import Guarantee, Waiting
    from agent.client.errors import AgentError
    from deployer.applying.fleet import Answers
    from deployer.cloud.cloud import Cloud
    from deployer.language.schema import Definition
    from tools.output import Output


def released_definition(cloud: Cloud) -> Definition | None:
    """What the newest release says should run; None before the first."""
    from deployer.history import release

    link = release.head(cloud.store, cloud.ref)
    return None if link is None else release.read_definition(cloud.store, link.release.definition)


def known_addresses(cloud: Cloud) -> dict[str, str]:
    """address:port of every host of the newest release and of the definition file, which counts where they differ.
    A definition file that is absent or invalid only counts for nothing where there is a release. Raises
    DefinitionInvalid."""
    from deployer.applying.fleet import addresses_of
    from deployer.language import definition
    from deployer.language.problems import DefinitionInvalid

    released = released_definition(cloud)
    try:
        written = definition.load(cloud.definition_path, cloud.overlay).definition
    except DefinitionInvalid:
        if released is None:
            raise
        written = None
    return addresses_of(released, written)


async def call_each(cloud: Cloud, hosts: Iterable[str], call: Call) -> Answers[Outcome]:
    """The same call, which belongs to no plan, on each of these hosts."""
    from agent.api.calls import Envelope
    from deployer.applying.fleet import Fleet
    from deployer.cloud import trust

    envelope = Envelope(call, by=trust.common_name(cloud.credentials))
    async with Fleet(known_addresses(cloud), cloud.credentials) as fleet:
        return await fleet.each(hosts, lambda client: client.call(envelope))


def split_instance(text: str, what: str = "process", example: str = "web@fra1") -> tuple[str, str]:
    """`web@fra1` -> (`web`, `fra1`). Raises UsageError."""
    name, at, host = text.partition("@")
    if not (name and at and host):
        raise UsageError(f"{text!r} does not name a {what} on a host", hint=f"write it as NAME@HOST, such as {example}")
    return name, host


def tell_failures(failures: Mapping[str, AgentError], out: Output) -> bool:
    """Say on stderr which hosts did not answer; whether there were any."""
    import sys

    from tools import errors

    for error in failures.values():
        out.flush()
        errors.report(error, sys.stderr, as_json=out.as_json)
    return bool(failures)


def tell_waiting(hosts: Mapping[str, Iterable[Waiting] | UnsetType], out: Output) -> None:
    """Say which hosts hold a release that they were away for."""
    for host, waiting in sorted(hosts.items()):
        for one in waiting or ():
            out.line(f"{host} holds {waits(one)}; `lowcloud apply` makes it run that")


def tell_undecided(hosts: Mapping[str, Iterable[str]], out: Output) -> None:
    """Say which hosts are in the middle of a call, after which they may run something else."""
    for host, about in sorted(hosts.items()):
        out.line(f"{host} is in the middle of a call: {printable(', '.join(about))}")


def waits(waiting: Waiting) -> str:
    """A release that a host was away for, and how much of it is there."""
    here = f"{waiting.blobs - waiting.missing} of {counted(waiting.blobs, 'blob')} are there"
    compiled = f", {waiting.uncompiled} to be compiled" if waiting.uncompiled else ""
    what = f"release {shorten(waiting.release)} of {waiting.ref} by {waiting.by.removeprefix('operator:')}"
    return f"{printable(what)}, which it was away for: {here}{compiled}"


def weak_limits(guarantees: Iterable[Guarantee]) -> str:
    """Which promises of the sandbox are soft on a host and which are not given, in a line; "" where all are hard."""
    names: dict[str, list[str]] = {"soft": [], "no": []}
    for row in guarantees:
        names.setdefault(row.strength, []).append(row.name)
    told = {"soft": names["soft"], "not given": names["no"]}
    return "; ".join(f"{strength}: {', '.join(found)}" for strength, found in told.items() if found)
