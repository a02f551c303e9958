"""What a program imports against what its process is given.

These are warnings, not errors: an interpreter built for WASI imports every interface there is, whether its script uses
them or not, and the host denies what the definition does not grant in any case. But a web server whose process has no
listener, or a process with a listener whose program cannot open one, is nearly always a mistake, and cheap to see. A
program that imports a file system in a process without files is none: every C library imports one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deployer.language.reading import Finding
from deployer.language.schema import Definition, Process
from deployer.resolving.wasm_imports import Facts

SOCKETS = "wasi:sockets/"
FILES = ("wasi:filesystem/", "wasi_snapshot_preview1", "wasi_unstable")
HTTP = "wasi:http/outgoing-handler@0.2."
OFFERED_PACKAGES = ("wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/")
OFFERED_INTERFACES = ("wasi:http/types@0.2.", HTTP)
OFFERED_MODULES = ("wasi_snapshot_preview1", "wasi_unstable")
ENTRY_OF_COMPONENT = "wasi:cli/run@0.2."
ENTRY_OF_CORE = "_start"
MAX_SHOWN = 5


def ungranted(definition: Definition, facts: Mapping[str, Facts]) -> list[Finding]:
    """Warnings for a definition as written; `facts` by the name of the binary as written."""
    return [
        Finding(("process", name, "binary"), message, hint)
        for name, process in sorted(definition.process.items())
        if process.binary in facts
        for message, hint in _complaints(process, facts[process.binary])
    ]


def _complaints(process: Process, facts: Facts) -> Iterator[tuple[str, str]]:
    networked = bool(process.listen or process.connect)
    opens_sockets = any(name.startswith(SOCKETS) for name in facts.imports)
    if opens_sockets and not networked:
        yield "the program imports wasi:sockets, but its process may use no network", "give it [listen] or [connect]"
    if networked and not opens_sockets and not any(name.startswith(HTTP) for name in facts.imports):
        yield "its process has listeners or connections, but the program does not import wasi:sockets", ""
    if not process.connect and any(name.startswith(HTTP) for name in facts.imports):
        yield (
            "the program imports wasi:http/outgoing-handler, but its process may connect nowhere",
            "give it [connect] to whatever it asks",
        )
    has_files = process.config or process.volume or process.secret or process.disk
    if has_files and not any(name.startswith(FILES) for name in facts.imports):
        yield "its process has files, secrets, volumes or scratch space, but the program imports no file system", ""
    foreign = [name for name in facts.imports if not _offered(name, facts)]
    if foreign:
        shown = ", ".join(foreign[:MAX_SHOWN]) + (", …" if len(foreign) > MAX_SHOWN else "")
        yield f"the program imports what hosts do not offer: {shown}", "a host that lacks it will refuse to stage it"
    if not _runnable(facts):
        entry = "wasi:cli/run of WASI 0.2" if facts.kind == "component" else ENTRY_OF_CORE
        yield f"it exports no {entry}: it is a library, not a program", "link it as a command"


def _offered(name: str, facts: Facts) -> bool:
    if facts.kind == "core":
        return name in OFFERED_MODULES
    return (name.startswith(OFFERED_PACKAGES) and "@0.2." in name) or name.startswith(OFFERED_INTERFACES)


def _runnable(facts: Facts) -> bool:
    if facts.kind == "component":
        return any(name.startswith(ENTRY_OF_COMPONENT) for name in facts.exports)
    return ENTRY_OF_CORE in facts.exports
