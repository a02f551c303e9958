"""Can guests be given network namespaces here? Tried once, in a namespace of its own, so that nothing is changed."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import Final

from agent.sandbox import linux
from agent.supervisor.network import namespace
from agent.supervisor.network.addressing import FIRST_SLOT, Block
from agent.supervisor.network.forwarding import RUN, SETTINGS
from agent.supervisor.network.nftables import Nftables
from agent.supervisor.network.ruleset import GUARD_TABLE, table

_NEEDED: Final[tuple[Path, ...]] = (SETTINGS / "ipv4/ip_forward", RUN)


@functools.cache
def why_not() -> str:
    """Why guests cannot be given network namespaces; "" where they can. Takes some milliseconds, once."""
    if os.geteuid() != 0:
        return f"the agent runs as user {os.geteuid()}, who cannot make network namespaces"
    closed = next((path for path in _NEEDED if not os.access(path, os.W_OK)), None)
    if closed is not None:
        return f"the agent may not write to {closed}"
    found: list[str] = []
    # A thread of its own, because the step into a namespace is a thread's, and this one could not step back surely.
    trying = threading.Thread(target=lambda: found.append(_try()), name="network-trial")
    trying.start()
    trying.join()
    return found[0]


def _try() -> str:
    step = "no network namespace can be made"
    try:
        linux.own_network()
        step = "nftables cannot be used (package nftables)"
        rules = Nftables()
        rules.run(table(f"{GUARD_TABLE}-trial", Block(0)))
        rules.close()
        step = "no pair of interfaces (veth) can be made"
        os.close(namespace.make(Block(0), FIRST_SLOT))
    except OSError as error:
        return f"{step}: {os.strerror(error.errno) if error.errno else error}"
    return ""
