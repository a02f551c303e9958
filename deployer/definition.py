"""Reading a definition file: from bytes to the schema's `Definition`, or to everything that is wrong with them.

The file is TOML (`tomllib`). What is read has its units normalised to integers, its placement sorted and its endpoints
in their shortest form, so that two files that say the same give the same definition; file names stay as written until
`deployer.resolve` turns them into digests.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import Any

import msgspec

from deployer import checks, endpoints
from deployer.fields import Shape, fields_of
from deployer.positions import MAX_KEY_PARTS, Place, Positions, scan
from deployer.problems import DefinitionInvalid, Problem
from deployer.reading import Finding, broken_tables, read_values
from deployer.regular_file import NotReadable, open_regular
from deployer.schema import Definition, Process
from deployer.wording import dotted

MAX_DEFINITION_BYTES = 16 << 20

TABLES = [field.name for field in fields_of(Definition).values() if field.shape is Shape.TABLES]


class Parsed:
    """A definition as written, and the places of its keys and values.

    `definition` is complete and consistent. `warnings` are problems that do not stand in the way.
    """

    def __init__(self, definition: Definition, path: FilePath, text: str) -> None:
        self.definition = definition
        self.path = path
        self.text = text
        self.warnings = tuple(self.problems(checks.warnings(definition)))

    @functools.cached_property
    def positions(self) -> Positions:
        """Found when first needed: most definitions have no problem to show."""
        return scan(self.text)

    @property
    def directory(self) -> FilePath:
        """What relative file names are relative to."""
        return self.path.parent

    def problems(self, findings: Iterable[Finding]) -> list[Problem]:
        """Findings with their places, in the order of the file."""
        found = list(findings)
        return _place(found, self.positions, self.path) if found else []


def load(path: FilePath) -> Parsed:
    """Read a definition file. Raises DefinitionInvalid with every problem found."""
    return parse(_text(_read(path), path), path)


def parse(text: str, path: FilePath) -> Parsed:
    """Read a definition from its text; `path` is what problems name and what file names are relative to. Raises
    DefinitionInvalid with every problem found."""
    document = _document(text, path)
    findings: list[Finding] = []
    values, _ = read_values(Definition, document, (), findings)
    if all(isinstance(document.get(table, {}), dict) for table in TABLES):
        broken = broken_tables(findings)
        findings += checks.check(Definition(**{"name": "unnamed", **values}), broken)
    if findings:
        raise DefinitionInvalid(_place(findings, scan(text), path))
    return Parsed(_normalised(Definition(**values)), path, text)


def _read(path: FilePath) -> bytes:
    def fail(message: str, hint: str = "") -> DefinitionInvalid:
        return DefinitionInvalid([Problem(str(path), 0, 0, message, hint)])

    try:
        with open_regular(path) as file:
            data = file.read(MAX_DEFINITION_BYTES + 1)
    except NotReadable as reason:
        raise fail(str(reason), "write one (docs/definition.md), or name another" if reason.missing else "") from None
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_DEFINITION_BYTES:
        raise fail(f"is larger than the {MAX_DEFINITION_BYTES >> 20} MiB that a definition may have")
    return data


def _text(data: bytes, path: FilePath) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
        message = f"this is not UTF-8: byte 0x{data[error.start]:02x}"
        raise DefinitionInvalid([Problem(str(path), line, column, message, "save the file as UTF-8")]) from None


def _document(text: str, path: FilePath) -> dict[str, Any]:
    """The file's values by tomllib, after a look at what would cost it too much. Raises DefinitionInvalid."""
    if any(line.count(".") >= MAX_KEY_PARTS for line in text.split("\n")):
        # A dotted key costs tomllib the square of its length; dots in a string are nobody's business.
        stopped = scan(text).stopped
        if stopped is not None:
            raise DefinitionInvalid([Problem(str(path), *stopped.place, str(stopped))])
    try:
        return tomllib.loads(text)
    except RecursionError:
        stopped = scan(text).stopped
        place = stopped.place if stopped else Place(1, 1)
        message = str(stopped) if stopped else "nested too deeply"
        raise DefinitionInvalid([Problem(str(path), *place, message)]) from None
    except ValueError as error:
        raise DefinitionInvalid(_syntax_problems(error, text, path)) from None


_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_ABOUT_DUPLICATES = ("Cannot ", "Duplicate ")
"""How tomllib's messages about names that are defined twice begin."""


def _syntax_problems(error: ValueError, text: str, path: FilePath) -> list[Problem]:
    """Names that are defined twice, each with both places; otherwise what tomllib says."""
    positions = scan(text)
    duplicates = [
        Problem(
            str(path),
            *one.second,
            f"{dotted(one.path)} is defined twice; the first time in line {one.first.line}, column {one.first.column}",
            "remove one of them, or rename it",
        )
        for one in positions.duplicates
    ]
    match = _TOML_PLACE.fullmatch(str(error))
    message = match.group(1) if match else str(error)
    if not duplicates or not message.startswith(_ABOUT_DUPLICATES):
        place = Place(text.count("\n") + 1, len(text) - text.rfind("\n"))
        if match and match.group(2):
            place = Place(int(match.group(2)), int(match.group(3)))
        elif not match and positions.stopped is not None:
            place = positions.stopped.place
        message = f"this is not TOML: {message[:1].lower()}{message[1:]}"
        return [*duplicates, Problem(str(path), *place, message)]
    if positions.stopped is not None:
        stopped = positions.stopped
        duplicates.append(Problem(str(path), *stopped.place, f"this is not TOML: {stopped}"))
    return duplicates


def _place(findings: Iterable[Finding], positions: Positions, path: FilePath) -> list[Problem]:
    problems = []
    for finding in findings:
        place = positions.find(finding.path, of_key=finding.of_key)
        message = f"{dotted(finding.path)}: {finding.message}" if finding.path else finding.message
        problems.append(Problem(str(path), *place, message, finding.hint))
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


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
