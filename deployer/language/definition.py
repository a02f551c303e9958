"""Reading a definition: from its files to the schema's `Definition`, or to everything that is wrong with them.

The files are TOML; `deployer.language.sources` makes one document of them. What is read has its units normalised to
integers, its placement sorted and its endpoints in their shortest form, so that two definitions that say the same are
the same; file names stay as written until `deployer.resolving.resolve` turns them into digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path as FilePath

import msgspec

from deployer.language import checks, endpoints, sources
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.reading import Finding, broken_tables, read_values
from deployer.language.schema import Definition, Process
from deployer.language.sources import HEAD, MAX_DEFINITION_BYTES, TABLES, Sources

__all__ = ["MAX_DEFINITION_BYTES", "Parsed", "load", "parse"]


class Parsed:
    """A definition as written, and where its keys and values stand.

    `definition` is complete and consistent. `warnings` are problems that do not stand in the way.
    """

    def __init__(self, definition: Definition, path: FilePath, read: Sources, overlay: str | None) -> None:
        self.definition = definition
        self.path = path
        self.sources = read
        self.overlay = overlay
        """The name of the overlay that was read with it."""
        self.warnings = tuple(self.problems(checks.warnings(definition)))

    @property
    def directory(self) -> FilePath:
        """What relative file names are relative to."""
        return self.path.parent

    def problems(self, findings: Iterable[Finding]) -> list[Problem]:
        """Findings with their places, in the order of the files."""
        found = list(findings)
        return self.sources.problems(found) if found else []


def load(path: FilePath, overlay: str | None = None) -> Parsed:
    """Read a definition file, what it includes and an overlay. Raises DefinitionInvalid with every problem found."""
    return _parsed(sources.read(path, overlay), path, overlay)


def parse(text: str, path: FilePath, overlay: str | None = None) -> Parsed:
    """As `load`, with this text for what is in the file; `path` is what problems name and what file names are relative
    to."""
    return _parsed(sources.read(path, overlay, text=text), path, overlay)


def _parsed(read: Sources, path: FilePath, overlay: str | None) -> Parsed:
    findings: list[Finding] = []
    values, _ = read_values(Definition, read.document, (), findings, also=HEAD)
    if all(isinstance(read.document.get(table, {}), dict) for table in TABLES):
        broken = broken_tables(findings)
        findings += checks.check(Definition(**{"name": "unnamed", **values}), broken)
    if findings:
        raise DefinitionInvalid(read.problems(findings))
    return Parsed(_normalised(Definition(**values)), path, read, overlay)


def _normalised(definition: Definition) -> Definition:
    """One spelling for one meaning."""
    hosts = {
        name: msgspec.structs.replace(host, address=str(endpoints.parse_host_address(host.address)))
        for name, host in definition.host.items()
    }
    processes = {name: _normalised_process(process) for name, process in definition.process.items()}
    return msgspec.structs.replace(definition, host=hosts, process=processes)


def _normalised_process(process: Process) -> Process:
    return msgspec.structs.replace(
        process,
        hosts=tuple(sorted(process.hosts)),
        listen={name: str(endpoints.parse_listener(text)) for name, text in process.listen.items()},
        connect={name: str(endpoints.parse_target(text)) for name, text in process.connect.items()},
    )
