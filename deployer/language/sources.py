"""The files that a definition consists of, as one document that remembers where each of its keys came from.

    shop.toml             names further files: include = ["hosts.toml", "regions/eu.toml"]
    shop.staging.toml     the overlay of `-e staging`: what differs there, and remove = ["process.debug"]

**Include.** Included files add to the tables of names: each region, host, process, volume and secret is written in one
file, and one that is written in two is an error that names both places. A file may include more; its paths are relative
to itself and stay in the directory of the definition.

**Overlay.** One file, chosen by name. Its values replace those of the definition, its tables are merged key by key, and
what `remove` lists is taken away before that; so a table is replaced as a whole by removing it and writing it again. An
overlay includes nothing.

Files are read here and nowhere else; what is in them is for `deployer.language.reading` to judge. All mistakes of all
files are collected.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple

from deployer.cloud.regular_file import NotReadable, open_regular
from deployer.language.fields import Shape, fields_of
from deployer.language.positions import MAX_KEY_PARTS, Path, Place, Positions, scan
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.reading import Finding, read_values
from deployer.language.schema import Definition, Head
from deployer.language.toml_file import document_of, text_of
from deployer.language.wording import dotted, near_hint, quoted

MAX_DEFINITION_BYTES: Final = 16 << 20
"""Of all files of a definition together."""
MAX_FILES: Final = 256
MAX_INCLUDE_DEPTH: Final = 8
MAX_OVERLAYS_SHOWN: Final = 20

HEAD: Final = tuple(fields_of(Head))
TABLES: Final = tuple(field.name for field in fields_of(Definition).values() if field.shape is Shape.TABLES)
_MISSING_HINT: Final = "write one (docs/definition.md), or name another"
OVERLAY_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


class Source:
    """One file: its text, its values, and where they stand."""

    def __init__(self, path: FilePath, text: str, document: dict[str, Any], *, is_overlay: bool = False) -> None:
        self.path = path
        self.text = text
        self.document = document
        self.is_overlay = is_overlay

    @functools.cached_property
    def positions(self) -> Positions:
        """Found when first needed: most definitions have no problem to show."""
        return scan(self.text)

    def depth_of(self, path: Path) -> int:
        """How much of a path this file has."""
        here: Any = self.document
        for depth, key in enumerate(path):
            try:
                here = here[key]
            except (KeyError, IndexError, TypeError):
                return depth
        return len(path)


class Origin(NamedTuple):
    """Where something was written."""

    source: Source
    place: Place


class Sources:
    """All files of a definition. `document` is what they say together."""

    def __init__(self, files: list[Source], overlay: Source | None, document: dict[str, Any], removed: dict[Path, int]):
        self.files = files
        """The definition file, then the included ones in the order of their inclusion."""
        self.overlay = overlay
        self.document = document
        self.removed = removed
        """What the overlay takes away, with the index in its `remove`."""

    @property
    def all(self) -> list[Source]:
        return [*self.files, *([self.overlay] if self.overlay else [])]

    def origin(self, path: Path) -> Origin | None:
        """Where the value of this path was written; None where no file has it."""
        for source in reversed(self.all):
            if source.depth_of(path) == len(path):
                return Origin(source, source.positions.find(path))
        return None

    def nearest(self, path: Path, *, of_key: bool = False) -> Origin:
        """Where a person has to look: at the path itself, at what took it away, or at the nearest thing around it."""
        best = max(self.files, key=lambda source: source.depth_of(path))
        depth = best.depth_of(path)
        if self.overlay is not None:
            above = self.overlay.depth_of(path)
            if above > depth or above == len(path):
                return Origin(self.overlay, self.overlay.positions.find(path, of_key=of_key))
            for end in range(len(path), 0, -1):
                if path[:end] in self.removed:
                    return Origin(self.overlay, self.overlay.positions.find(("remove", self.removed[path[:end]])))
        return Origin(best, best.positions.find(path, of_key=of_key))

    def problems(self, findings: Iterable[Finding]) -> list[Problem]:
        """Findings with their places, in the order of the files."""
        order = {id(source): number for number, source in enumerate(self.all)}
        found = []
        for finding in findings:
            source, place = self.nearest(finding.path, of_key=finding.of_key)
            message = f"{dotted(finding.path)}: {finding.message}" if finding.path else finding.message
            found.append((order[id(source)], Problem(str(source.path), *place, message, finding.hint)))
        return [problem for _, problem in sorted(found, key=lambda one: (one[0], one[1].line, one[1].column))]


def overlay_path(definition: FilePath, overlay: str) -> FilePath:
    """`shop.toml`, `staging` -> `shop.staging.toml`. Raises DefinitionInvalid for what cannot be an overlay's name."""
    if not OVERLAY_NAME.fullmatch(overlay):
        message = f"no overlay can be called {quoted(overlay)}"
        hint = "lower-case letters, digits and hyphens, a letter first"
        raise DefinitionInvalid([Problem(str(definition), 0, 0, message, hint)])
    return definition.with_name(f"{definition.stem}.{overlay}.toml")


def read(path: FilePath, overlay: str | None = None, *, text: str | None = None) -> Sources:
    """Read a definition's files; `text` stands for what is in the first. Raises DefinitionInvalid with every problem
    that keeps the files from being one document."""
    reader = _Reader(path)
    reader.read_definition(text)
    over = reader.read_overlay(overlay_path(path, overlay)) if overlay is not None else None
    document = reader.joined()
    removed = reader.remove(over, document) if over is not None else {}
    if reader.problems:
        raise DefinitionInvalid(reader.problems)
    if over is not None:
        document = _overlaid(document, {key: value for key, value in over.document.items() if key not in HEAD})
    return Sources(reader.files, over, document, removed)


class _Reader:
    """The state of one reading."""

    def __init__(self, definition: FilePath) -> None:
        self.definition = definition
        self.files: list[Source] = []
        self.problems: list[Problem] = []
        self.left_bytes = MAX_DEFINITION_BYTES
        self.included: dict[FilePath, str] = {}
        """Every file so far, by its real path, and where it was included."""

    # --- files ---

    def read_definition(self, text: str | None) -> None:
        """The definition file and, in the order of their inclusion, all it includes."""
        self.included[_real(self.definition)] = "the definition itself"
        source = self.open(self.definition, text)
        if source is not None:
            self.include_all(source, (self.definition,))
        elif not self.files:
            raise DefinitionInvalid(self.problems)

    def read_overlay(self, path: FilePath) -> Source | None:
        source = self.open(path, None, is_overlay=True)
        if source is None:
            return None
        if "include" in source.document:
            self.complain(source, ("include",), "an overlay includes no files", "write it in the definition file")
        return source

    def open(self, path: FilePath, text: str | None, *, is_overlay: bool = False) -> Source | None:
        """Read and parse one file; None, with its problems noted, where that cannot be done."""
        try:
            if text is None:
                text = text_of(self.bytes_of(path, is_overlay=is_overlay), path)
            source = Source(path, text, document_of(text, path), is_overlay=is_overlay)
        except DefinitionInvalid as invalid:
            self.problems += invalid.problems
            return None
        if not is_overlay:
            self.files.append(source)
            if "remove" in source.document:
                self.complain(source, ("remove",), "only an overlay removes keys", "delete what it names instead")
        return source

    def bytes_of(self, path: FilePath, *, is_overlay: bool) -> bytes:
        try:
            data = _bytes_in(path, self.left_bytes)
        except _Missing:
            if not is_overlay:
                raise
            message, hint = "there is no such overlay", _overlays_hint(self.definition)
            raise DefinitionInvalid([Problem(str(path), 0, 0, message, hint)]) from None
        if len(data) > self.left_bytes:
            limit = f"{MAX_DEFINITION_BYTES >> 20} MiB that a definition may have"
            message = f"is larger than the {limit}" if not self.files else f"is more than is left of the {limit}"
            raise DefinitionInvalid([Problem(str(path), 0, 0, message)])
        self.left_bytes -= len(data)
        return data

    def complain(self, source: Source, path: Path, message: str, hint: str = "", *, of_key: bool = True) -> None:
        place = source.positions.find(path, of_key=of_key)
        self.problems.append(Problem(str(source.path), *place, f"{dotted(path)}: {message}", hint))

    # --- include ---

    def include_all(self, source: Source, chain: tuple[FilePath, ...]) -> None:
        """Read what a file includes. `chain`: the files that led here, this one last."""
        for index, name in enumerate(self.listed(source, "include")):
            path, complaint = self.admitted(source, name, chain)
            if complaint is not None:
                self.complain(source, ("include", index), *complaint, of_key=False)
                continue
            place = source.positions.find(("include", index))
            self.included[_real(path)] = f"{source.path}:{place.line}:{place.column}"
            included = self.open(path, None)
            if included is not None:
                self.include_all(included, (*chain, path))

    def listed(self, source: Source, key: str) -> tuple[str, ...]:
        """A list of the file's head; empty, with the problems noted, where it cannot be read."""
        findings: list[Finding] = []
        present = {key: source.document[key]} if key in source.document else {}
        values, _ = read_values(Head, present, (), findings)
        for finding in findings:
            self.complain(source, finding.path, finding.message, finding.hint, of_key=finding.of_key)
        found: tuple[str, ...] = values.get(key, ())
        return found

    def admitted(
        self, source: Source, name: str, chain: tuple[FilePath, ...]
    ) -> tuple[FilePath, tuple[str, str] | None]:
        """The path of an included file, and why, with a hint, it may not be read."""
        root = self.definition.parent
        path = FilePath(os.path.normpath(source.path.parent / name))
        real = _real(path)
        complaint = None
        if FilePath(name).is_absolute() or not real.is_relative_to(_real(root)):
            complaint = f"{quoted(name)} lies outside of the definition's directory", f"move it below {root}"
        elif not os.path.lexists(real):  # which fails for no name
            complaint = f"there is no file {quoted(name)}", f"looked for {path}"
        elif real in {_real(one) for one in chain}:
            circle = " -> ".join(one.name for one in (*chain, path))
            complaint = f"{quoted(name)} includes itself: {circle}", "remove one of these includes"
        elif real in self.included:
            complaint = f"{quoted(name)} is included already, by {self.included[real]}", "remove one of the two"
        elif len(chain) > MAX_INCLUDE_DEPTH:
            complaint = f"files include files more than {MAX_INCLUDE_DEPTH} deep", "include it further up"
        elif len(self.included) >= MAX_FILES:
            complaint = f"a definition has at most {MAX_FILES} files", "join some of them"
        return path, complaint

    def joined(self) -> dict[str, Any]:
        """What the files say together. What two of them say is a problem that names both places."""
        document: dict[str, Any] = {}
        for source in self.files:
            for key, value in source.document.items():
                if key in HEAD:
                    continue
                if key in TABLES and isinstance(value, dict) and isinstance(document.get(key, {}), dict):
                    table = document.setdefault(key, {})
                    for name, entry in value.items():
                        self.add(table, (key, name), entry, source)
                else:
                    self.add(document, (key,), value, source)
        return document

    def add(self, into: dict[str, Any], path: Path, value: Any, source: Source) -> None:
        if path[-1] not in into:
            into[str(path[-1])] = value
            return
        first = next(one for one in self.files if one.depth_of(path) == len(path))
        place = first.positions.find(path, of_key=True)
        self.complain(
            source,
            path,
            f"is defined in {first.path}:{place.line}:{place.column} already",
            "write it in one file, or what differs in an overlay",
        )

    # --- overlay ---

    def remove(self, overlay: Source, document: dict[str, Any]) -> dict[Path, int]:
        """Take away what an overlay lists; what it took, with the index in the list."""
        removed: dict[Path, int] = {}
        for index, text in enumerate(self.listed(overlay, "remove")):
            path = key_path(text)
            if not path:
                hint = "write it as TOML does: process.web.env.LOG"
                self.complain(overlay, ("remove", index), f"{quoted(text)} is not a key", hint, of_key=False)
            elif missing := _take_away(document, path):
                self.complain(overlay, ("remove", index), *missing, of_key=False)
            else:
                removed[path] = index
        return removed


def key_path(text: str) -> Path:
    """The parts of a dotted key; none where the text is not one."""
    if "\n" in text or "\r" in text or text.count(".") >= MAX_KEY_PARTS:
        return ()
    try:
        here: Any = tomllib.loads(f"{text} = 0")
    except ValueError:
        return ()
    path: list[str] = []
    while isinstance(here, dict):
        if len(here) != 1:
            return ()
        key, here = next(iter(here.items()))
        path.append(key)
    return tuple(path) if here == 0 else ()


def _take_away(document: dict[str, Any], path: Path) -> tuple[str, str] | None:
    """Remove a path, copying the tables on the way, which belong to the files. What is wrong, and a hint, where it is
    not there."""
    here = document
    for depth, key in enumerate(path):
        if not isinstance(here, dict) or key not in here:
            known = sorted(map(str, here)) if isinstance(here, dict) else []
            return f"the definition has no {dotted(path[: depth + 1])} to remove", near_hint(
                str(key), known, "there are"
            )
        if depth == len(path) - 1:
            del here[key]
        elif isinstance(here[key], dict):
            here[key] = dict(here[key])
            here = here[key]
        else:
            return f"the definition has no {dotted(path)} to remove", f"{dotted(path[: depth + 1])} is not a table"
    return None


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values replace, tables merge. How deep this goes, the file's own nesting bounds."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _overlaid(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _overlays_hint(definition: FilePath) -> str:
    """The overlays that lie beside a definition, as a hint."""
    found = overlays_of(definition)[:MAX_OVERLAYS_SHOWN]
    wanted = definition.with_name(f"{definition.stem}.NAME.toml").name
    return f"beside it there are: {', '.join(found)}" if found else f"write what differs into {wanted}"


def overlays_of(definition: FilePath) -> list[str]:
    """The names of the overlays that lie beside a definition file, sorted."""
    start, end = f"{definition.stem}.", ".toml"
    try:
        with os.scandir(definition.parent) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    except OSError:
        return []
    return sorted(name for one in names if OVERLAY_NAME.fullmatch(name := one[len(start) : -len(end)]))


def text_in(path: FilePath) -> str:
    """The text of one file, for who wants nothing but that. Raises DefinitionInvalid."""
    return text_of(_bytes_in(path, MAX_DEFINITION_BYTES), path)


def _real(path: FilePath) -> FilePath:
    """Where a path leads to in the end, also where links lead in a circle, for which `Path.resolve` has no answer."""
    return FilePath(os.path.realpath(path))


def _bytes_in(path: FilePath, most: int) -> bytes:
    """At most so many bytes and one. Raises DefinitionInvalid; _Missing where there is no such file."""
    try:
        with open_regular(path) as file:
            return file.read(most + 1)
    except NotReadable as reason:
        kind = _Missing if reason.missing else DefinitionInvalid
        raise kind([Problem(str(path), 0, 0, str(reason), _MISSING_HINT if reason.missing else "")]) from None
    except OSError as error:
        raise DefinitionInvalid([Problem(str(path), 0, 0, f"cannot be read: {error.strerror}")]) from None


class _Missing(DefinitionInvalid):
    """There is no such file."""
