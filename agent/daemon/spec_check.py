"""What a specification must fulfil beyond its types, checked before anything is done with it. Pure."""

from __future__ import annotations

import re
from typing import Final

from agent.api.answers import Reason
from agent.api.processes import ProcessSpec
from agent.daemon.capacity import conflict, unusable_address
from agent.daemon.guest_files import plan_files
from agent.daemon.refusal import Refused

MAX_LISTENERS: Final = 64
MAX_ARGUMENT_BYTES: Final = 1 << 20
"""Arguments and environment together."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_spec(spec: ProcessSpec) -> None:
    """Raises Refused(BAD_REQUEST) with the first thing that is wrong."""
    problem = _problem(spec)
    if problem:
        raise Refused(Reason.BAD_REQUEST, f"{spec.name}: {problem}", hint="correct the definition and apply it again")
    plan_files(spec)


def _problem(spec: ProcessSpec) -> str:
    for name in spec.env:
        if not _VARIABLE.fullmatch(name):
            return f"{name!r} is no name for a variable"
    command = spec.ready.command if spec.ready else ()
    texts = [*spec.args, *spec.env.values(), *command]
    if any("\0" in text for text in texts):
        return "an argument or a variable has a zero byte in it"
    size = sum(len(text.encode()) for text in [*texts, *spec.env])
    if size > MAX_ARGUMENT_BYTES:
        return f"its arguments and environment take {size} bytes; at most {MAX_ARGUMENT_BYTES} are possible"
    if len(spec.listen) > MAX_LISTENERS:
        return f"it has {len(spec.listen)} listeners; at most {MAX_LISTENERS} are possible"
    address = unusable_address([*spec.listen.values(), *spec.connect.values()])
    if address:
        return f"{address!r} is no IPv4 or IPv6 address"
    clash = conflict({spec.name: spec})
    if clash:
        return clash
    return _ready_problem(spec)


def _ready_problem(spec: ProcessSpec) -> str:
    if spec.ready is None:
        return ""
    if spec.ready.tcp is None:
        if spec.ready.path is not None:
            return "its readiness has a path for an HTTP request, and names no listener (`tcp`)"
        return "" if spec.ready.command else "its readiness names neither a listener (`tcp`) nor a command (`run`)"
    listener = spec.listen.get(spec.ready.tcp)
    if listener is None:
        return f"it is ready by its listener {spec.ready.tcp!r}, which it does not have"
    if listener.protocol != "tcp":
        return f"it is ready by its listener {spec.ready.tcp!r}, which is not TCP"
    path = spec.ready.path
    if path is not None and not re.fullmatch(r"/[\x21-\x7e]*", path):
        return f"{path!r} is no path for an HTTP request"
    return ""
