"""Several histories in one store: `prod`, and one for each overlay. Each is about hosts of its own; two that name the
same agent would take turns in stopping each other's processes."""

from __future__ import annotations

from deployer.history import release
from deployer.history.release import ReleaseStore
from deployer.language.schema import Definition


def shared_hosts(store: ReleaseStore, ref: str, definition: Definition) -> dict[str, list[str]]:
    """By the name of every other history whose newest release has an agent of this definition: the hosts, as this
    definition calls them."""
    found: dict[str, list[str]] = {}
    for other in sorted(store.refs()):
        if other == ref or not release.is_history(other):
            continue
        link = release.head(store, other)
        if link is None:
            continue
        hosts = release.read_definition(store, link.release.definition).host.values()
        addresses = {host.address for host in hosts}
        shared = sorted(name for name, host in definition.host.items() if host.address in addresses)
        if shared:
            found[other] = shared
    return found
