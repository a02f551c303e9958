"""Where every key and value of a TOML file stands, as line and column.

`tomllib` gives values without places. This scanner gives places without values: it follows the same grammar, builds
the same paths, and also sees what `tomllib` stops at, a name that is defined twice, with both places. A property test
holds the two together. It is only asked when there is something to complain about, so its speed does not matter much;
its bounds do: it never recurses deeper than `MAX_DEPTH`, nor follows a key of more than `MAX_KEY_PARTS` parts.

Grammar: https://toml.io/en/v1.0.0 (the ABNF there). Lines and columns count from 1; a column counts characters.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the document."""

MAX_DEPTH = 32
"""Nested lists and inline tables."""
MAX_KEY_PARTS = 32


class Place(NamedTuple):
    line: int
    column: int


class Duplicate(NamedTuple):
    """A name that is defined a second time."""

    path: Path
    first: Place
    second: Place


class ScanStopped(Exception):
    """The text is not TOML from here on, or is nested too deeply."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class Positions(NamedTuple):
    """The places of a document."""

    keys: dict[Path, Place]
    """Where a key was first written; for a table, its name in the first header that mentions it."""
    values: dict[Path, Place]
    """Where a value begins; for a table that has a header, its name there."""
    duplicates: tuple[Duplicate, ...]
    stopped: ScanStopped | None
    """Why the scan did not reach the end."""

    def find(self, path: Path, *, of_key: bool = False) -> Place:
        """The place of a value or of its key; where it is not in the document (a missing key, say), that of the nearest
        thing around it."""
        for end in range(len(path), 0, -1):
            prefix = path[:end]
            for table in (self.keys, self.values) if of_key or end < len(path) else (self.values, self.keys):
                if prefix in table:
                    return table[prefix]
        return Place(1, 1)


def scan(text: str) -> Positions:
    """Find the places in a document. Never raises: where the text is not TOML, the result says so in `stopped`."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    stopped = None
    try:
        scanner.document()
    except ScanStopped as reason:
        stopped = reason
    return Positions(scanner.keys, scanner.values, tuple(scanner.duplicates), stopped)


# No possessive quantifiers: Python 3.11 before 3.11.5, Debian 12's among them, matches some of them wrongly.
_SPACE = re.compile(r"[ \t]*")
_SPACE_AND_LINES = re.compile(r"[ \t\n]*")
COMMENT = re.compile(r"#[^\n]*")
_REST_OF_LINE = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
PLAIN = re.compile(r"\d{4}-\d\d-\d\d \d[0-9:.Zz+-]*|[A-Za-z0-9_.:+-]+")
QUOTES = {'"': re.compile('"+'), "'": re.compile("'+")}
_IN_SHORT = {'"': re.compile(r'["\\\n]'), "'": re.compile(r"['\n]")}
_IN_LONG = {'"': re.compile(r'["\\]'), "'": re.compile("'")}
"""By quotation mark: what means something inside a string that begins with one, and with three."""


def string_end(text: str, at: int, *, may_be_long: bool) -> int | None:
    """Where the string that begins at `at` ends, or None where it does not."""
    quote = text[at]
    is_long = may_be_long and text.startswith(quote * 3, at)
    special = (_IN_LONG if is_long else _IN_SHORT)[quote]
    at += 3 if is_long else 1
    while found := special.search(text, at):
        at = found.start()
        if text[at] == "\\":
            at += 2
        elif text[at] == "\n":
            return None
        elif not is_long:
            return at + 1
        else:
            run = QUOTES[quote].match(text, at)
            length = len(run.group()) if run else 0
            if length >= 3:
                return at + min(length, 5)
            at += length
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.keys: dict[Path, Place] = {}
        self.values: dict[Path, Place] = {}
        self.duplicates: list[Duplicate] = []
        self.lines = [0] + [m.end() for m in re.finditer("\n", text)]
        self.assigned: set[Path] = set()
        """Paths that were given a value, and so cannot be given another or be opened as a table."""
        self.opened: set[Path] = set()
        """Tables with a header of their own."""
        self.dotted: set[Path] = set()
        """Tables that came into being through a dotted key; a header may not open them again."""
        self.lists: dict[Path, int] = {}
        """Arrays of tables and how many tables each has so far."""

    def place(self, at: int) -> Place:
        line = bisect_right(self.lines, at)
        return Place(line, at - self.lines[line - 1] + 1)

    def stop(self, message: str, at: int) -> ScanStopped:
        return ScanStopped(message, self.place(at))

    def match(self, pattern: re.Pattern[str], at: int, wanted: str) -> int:
        found = pattern.match(self.text, at)
        if found is None:
            raise self.stop(f"expected {wanted}", at)
        return found.end()

    def blank(self, at: int) -> int:
        """Skip space, line ends and comments."""
        while True:
            at = self.match(_SPACE_AND_LINES, at, "space")
            if not self.text.startswith("#", at):
                return at
            at = self.match(COMMENT, at, "a comment")

    def string(self, at: int, *, may_be_long: bool) -> int:
        end = string_end(self.text, at, may_be_long=may_be_long)
        if end is None:
            raise self.stop("expected a whole string", at)
        return end

    def document(self) -> None:
        table: Path = ()
        at = 0
        while True:
            at = self.blank(at)
            if at == len(self.text):
                return
            if self.text[at] == "[":
                table, at = self.header(at)
            else:
                at = self.assignment(table, at, depth=0)
            at = self.match(_REST_OF_LINE, at, "the end of the line")

    def header(self, at: int) -> tuple[Path, int]:
        is_list = self.text.startswith("[[", at)
        closing = "]]" if is_list else "]"
        parts, at = self.dotted_key(at + len(closing))
        if not self.text.startswith(closing, at):
            raise self.stop(f"expected {closing}", at)
        path: Path = ()
        for name, place in parts[:-1]:
            path = self.latest((*path, name))
            self.note(path, place)
        name, place = parts[-1]
        path = (*path, name)
        if is_list:
            path = self.next_of_list(path, place)
        elif path in self.assigned or path in self.opened or path in self.dotted or path in self.lists:
            self.duplicates.append(Duplicate(path, self.keys[path], place))
        self.note(path, place)
        self.opened.add(path)
        return path, at + len(closing)

    def latest(self, path: Path) -> Path:
        """A name of an array of tables stands for the table that was added last."""
        return (*path, self.lists[path] - 1) if path in self.lists else path

    def next_of_list(self, path: Path, place: Place) -> Path:
        if path in self.keys and path not in self.lists:
            self.duplicates.append(Duplicate(path, self.keys[path], place))
        self.note(path, place)
        index = self.lists.get(path, 0)
        self.lists[path] = index + 1
        return (*path, index)

    def note(self, path: Path, place: Place) -> None:
        if not isinstance(path[-1], int):
            self.keys.setdefault(path, place)
        self.values.setdefault(path, place)

    def assignment(self, table: Path, at: int, *, depth: int) -> int:
        """`key = value`; returns where it ends."""
        parts, at = self.dotted_key(at)
        if not self.text.startswith("=", at):
            raise self.stop("expected = after the key", at)
        at = self.match(_SPACE, at + 1, "a value")
        path = table
        for name, place in parts[:-1]:
            path = (*path, name)
            if path in self.assigned or path in self.opened or path in self.lists:
                self.duplicates.append(Duplicate(path, self.keys[path], place))
            self.note(path, place)
            self.dotted.add(path)
        name, place = parts[-1]
        path = (*path, name)
        if path in self.keys:
            self.duplicates.append(Duplicate(path, self.keys[path], place))
        self.keys.setdefault(path, place)
        self.values.setdefault(path, self.place(at))
        end = self.value(path, at, depth=depth)
        self.assigned.add(path)
        return end

    def dotted_key(self, at: int) -> tuple[list[tuple[str, Place]], int]:
        """The parts of a key with their places, and where what follows it begins."""
        parts: list[tuple[str, Place]] = []
        while True:
            at = self.match(_SPACE, at, "a key")
            name, end = self.simple_key(at)
            parts.append((name, self.place(at)))
            if len(parts) > MAX_KEY_PARTS:
                raise self.stop(f"a key of more than {MAX_KEY_PARTS} parts", at)
            at = self.match(_SPACE, end, "a key")
            if not self.text.startswith(".", at):
                return parts, at
            at += 1

    def simple_key(self, at: int) -> tuple[str, int]:
        if bare := BARE_KEY.match(self.text, at):
            return bare.group(), bare.end()
        if self.text[at : at + 1] not in QUOTES:
            raise self.stop("expected a key", at)
        end = self.string(at, may_be_long=False)
        try:
            return tomllib.loads(f"k = {self.text[at:end]}")["k"], end
        except ValueError:
            raise self.stop("this quoted key is not valid", at) from None

    def value(self, path: Path, at: int, *, depth: int) -> int:
        """Skip a value, noting what is inside it; returns where it ends."""
        if depth > MAX_DEPTH:
            raise self.stop(f"nested more than {MAX_DEPTH} deep", at)
        first = self.text[at : at + 1]
        if first == "[":
            return self.array(path, at + 1, depth=depth)
        if first == "{":
            return self.inline_table(path, at + 1, depth=depth)
        if first in QUOTES:
            return self.string(at, may_be_long=True)
        return self.match(PLAIN, at, "a value")

    def array(self, path: Path, at: int, *, depth: int) -> int:
        index = 0
        while True:
            at = self.blank(at)
            if self.text.startswith("]", at):
                return at + 1
            item = (*path, index)
            self.values[item] = self.place(at)
            at = self.value(item, at, depth=depth + 1)
            index += 1
            at = self.blank(at)
            if self.text.startswith(",", at):
                at += 1
            elif not self.text.startswith("]", at):
                raise self.stop("expected a comma or ]", at)

    def inline_table(self, path: Path, at: int, *, depth: int) -> int:
        # Line breaks and a comma at the end are TOML 1.1; whether they are allowed is for tomllib to say.
        while True:
            at = self.blank(at)
            if self.text.startswith("}", at):
                return at + 1
            at = self.assignment(path, at, depth=depth + 1)
            at = self.blank(at)
            if self.text.startswith(",", at):
                at += 1
            elif not self.text.startswith("}", at):
                raise self.stop("expected a comma or }", at)
