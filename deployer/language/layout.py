"""One layout for every definition file: what `lowcloud fmt` makes of it, comments and all.

- A key is `name = value`, at the left edge, without quotes where it needs none; an inline table is `{ a = 1, b = 2 }`.
- A list stands on one line where it fits and holds no comment; otherwise each item has a line and a comma.
- An empty line stands before each table, but not before one that is part of the table above, or where nothing but the
  name is said of both; elsewhere at most one is kept. Comments above a table go with it.
- Comments at the end of lines that follow each other begin in one column.

Nothing is reordered, no value is rewritten. What comes out is read back and must be the same values in the same order
with the same comments, and come out of here unchanged; a file for which that does not hold is refused, never mangled.
Why not `tomlkit`, which keeps comments: it keeps the layout as well, so the rules above would have to be written either
way; and of 400 generated documents that `tomllib` reads, version 0.15.2 refused or changed 146 just by reading and
writing them.

Grammar: https://toml.io/en/v1.0.0; `tomllib` has accepted the text before it is taken apart here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple

from deployer.errors import DeployerError
from deployer.language.positions import BARE_KEY, COMMENT, PLAIN, QUOTES, string_end
from deployer.language.toml_file import document_of

MAX_LINE: Final = 100
INDENT: Final = "    "
_SPACE = re.compile(r"[ \t]*")
_NEW_LINE: Final = "\n"


class LayoutRefused(DeployerError):
    """A file that cannot be laid out without a risk to what it says. It was left alone."""

    hint = "this is a fault of lowcloud: please report the file; it can be used as it is"


class Item(NamedTuple):
    """One item of a list, with the comments on the lines before it and behind it on its own."""

    before: tuple[str, ...]
    value: Value
    comment: str


class List(NamedTuple):
    items: tuple[Item, ...]
    at_end: tuple[str, ...]
    """Comments between the last item and the bracket."""


class Inline(NamedTuple):
    """An inline table."""

    pairs: tuple[tuple[str, Value], ...]


Value = str | List | Inline
"""A text, number, date or truth value stays as it was written."""


class Line(NamedTuple):
    """A line with a key or a table's name, an empty line, or one with nothing but a comment."""

    key: str
    """"" for an empty line and for a comment alone."""
    value: Value | None
    """None but for `key = value`."""
    header: tuple[str, ...]
    """The names in a table's header."""
    comment: str


def laid_out(text: str, path: FilePath) -> str:
    """The text in the canonical layout. Raises DefinitionInvalid where it is not TOML, LayoutRefused."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    before = document_of(text, path)
    lines = list(_Reader(text).lines())
    made = _written(lines)
    try:
        again = list(_Reader(made).lines())
        same = repr(tomllib.loads(made)) == repr(before) and _comments(again) == _comments(lines)
        stable = _written(again) == made
    except (ValueError, IndexError) as error:
        raise LayoutRefused(f"{path}: the layout would not be TOML ({error})") from error
    if not same or not stable:
        raise LayoutRefused(f"{path}: the layout would change {'the next time' if same else 'what the file says'}")
    return made


# --- taking apart ---------------------------------------------------------------------------------------------------


class _Reader:
    """Takes text apart that `tomllib` has accepted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def lines(self) -> Iterator[Line]:
        while self.at < len(self.text):
            self.space()
            if self.at == len(self.text):
                return
            yield self.line()
            if not self.text.startswith(_NEW_LINE, self.at) and self.at < len(self.text):
                raise ValueError(f"more than a line at character {self.at}")
            self.at += 1

    def line(self) -> Line:
        first = self.text[self.at]
        if first in "#\n":
            return Line("", None, (), self.comment())
        if first == "[":
            brackets = 2 if self.text.startswith("[[", self.at) else 1
            self.at += brackets
            names = self.key()
            self.at += brackets
            inner = ".".join(names)
            return Line("[" * brackets + inner + "]" * brackets, None, names, self.comment())
        names = self.key()
        self.at += 1
        self.space()
        value = self.value()
        return Line(".".join(names), value, (), self.comment())

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def comment(self) -> str:
        """The comment that may follow on this line; "" for none."""
        self.space()
        found = COMMENT.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found.group().rstrip()

    def key(self) -> tuple[str, ...]:
        names = []
        while True:
            self.space()
            names.append(self.name())
            self.space()
            if not self.text.startswith(".", self.at):
                return tuple(names)
            self.at += 1

    def name(self) -> str:
        """One part of a key: without quotes where it needs none."""
        start = self.at
        bare = BARE_KEY.match(self.text, start)
        if bare:
            self.at = bare.end()
            return bare.group()
        self.at = self.end_of_string(may_be_long=False)
        written = self.text[start : self.at]
        inner = BARE_KEY.fullmatch(written[1:-1])
        return inner.group() if inner else written

    def end_of_string(self, *, may_be_long: bool) -> int:
        end = string_end(self.text, self.at, may_be_long=may_be_long)
        if end is None:
            raise ValueError(f"a string without an end at character {self.at}")
        return end

    def value(self) -> Value:
        first = self.text[self.at]
        if first == "[":
            return self.list()
        if first == "{":
            return self.inline()
        start = self.at
        if first in QUOTES:
            self.at = self.end_of_string(may_be_long=True)
        else:
            found = PLAIN.match(self.text, start)
            if found is None:
                raise ValueError(f"no value at character {start}")
            self.at = found.end()
        return self.text[start : self.at]

    def list(self) -> List:
        self.at += 1
        items: list[Item] = []
        before = self.comments()
        while not self.text.startswith("]", self.at):
            value = self.value()
            comment = self.comment()
            more = self.comments()
            if self.text.startswith(",", self.at):
                self.at += 1
                comment, more = (comment, more) if comment or more else (self.comment(), ())
                more = (*more, *self.comments())
            items.append(Item(before, value, comment))
            before = more
        self.at += 1
        return List(tuple(items), before)

    def comments(self) -> tuple[str, ...]:
        """Comments on lines of their own, up to what comes next."""
        found = []
        while True:
            self.space()
            if self.text.startswith("#", self.at):
                found.append(self.comment())
            elif self.text.startswith(_NEW_LINE, self.at):
                self.at += 1
            else:
                return tuple(found)

    def inline(self) -> Inline:
        self.at += 1
        pairs: list[tuple[str, Value]] = []
        self.space()
        while not self.text.startswith("}", self.at):
            names = self.key()
            self.at += 1
            self.space()
            pairs.append((".".join(names), self.value()))
            self.space()
            if self.text.startswith(",", self.at):
                self.at += 1
                self.space()
        self.at += 1
        return Inline(tuple(pairs))


# --- writing --------------------------------------------------------------------------------------------------------


def _written(lines: list[Line]) -> str:
    made: list[tuple[str, str]] = []
    """Each line, and the comment at its end, which waits for its column."""
    for line, gap in _spaced(lines):
        if gap and made:
            made.append(("", ""))
        if line.value is not None:
            made.append((f"{line.key} = {_value(line.value, f'{line.key} = ', '')}", line.comment))
        elif line.key:
            made.append((line.key, line.comment))
        else:
            made.append((line.comment, ""))
    return "".join(f"{one}\n" for one in _aligned(made))


def _spaced(lines: list[Line]) -> Iterator[tuple[Line, bool]]:
    """The lines that are not empty, and whether an empty one goes before each."""
    spacing = _Spacing()
    group: list[Line] = []
    """Comments right above what comes next, and that."""
    blank = False
    for line in lines:
        is_empty = not line.key and not line.comment
        if not is_empty:
            group.append(line)
        if group and (is_empty or line.key):
            gap = spacing.before(group, blank)
            yield from ((one, gap and number == 0) for number, one in enumerate(group))
            group, blank = [], False
        blank = blank or is_empty
    if group:
        gap = spacing.before(group, blank)
        yield from ((one, gap and number == 0) for number, one in enumerate(group))


class _Spacing:
    """Decides where an empty line stands."""

    def __init__(self) -> None:
        self.header: tuple[str, ...] = ()
        self.opened: set[tuple[str, ...]] = set()
        self.is_bare = False
        """Of the table that is open, nothing but its name."""
        self.after_comment = False
        """A comment that belongs to nothing came last."""

    def before(self, group: list[Line], blank: bool) -> bool:
        """Does an empty line go before these? `blank`: there was one."""
        header = group[-1].header
        after_comment, self.after_comment = self.after_comment, not group[-1].key
        if not header:
            first_of_table, self.is_bare = self.is_bare, False
            return blank and not first_of_table
        is_part = any(header[:n] in self.opened and self.header[:n] == header[:n] for n in range(1, len(header)))
        is_beside = self.is_bare and header[:-1] == self.header[:-1]
        self.header, self.is_bare = header, True
        self.opened.add(header)
        return len(group) > 1 or after_comment or not (is_part or is_beside)


def _aligned(lines: list[tuple[str, str]]) -> Iterator[str]:
    """Lines with their comments: those of neighbouring lines begin in one column."""
    run: list[tuple[str, str]] = []
    for line, comment in lines:
        if comment:
            run.append((line, comment))
            continue
        yield from _in_one_column(run)
        run = []
        yield line
    yield from _in_one_column(run)


def _in_one_column(run: list[tuple[str, str]]) -> Iterator[str]:
    column = max((len(_last(line)) for line, _ in run), default=0)
    for line, comment in run:
        yield f"{line}{' ' * (column - len(_last(line)))}  {comment}"


def _last(text: str) -> str:
    return text.rpartition(_NEW_LINE)[2]


def _value(value: Value, before: str, indent: str) -> str:
    """A value as it stands behind `before`, on a line that is indented so far."""
    if isinstance(value, str):
        return value
    if isinstance(value, Inline):
        return _inline(value)
    short = _on_one_line(value)
    if short is not None and len(indent) + len(before) + len(short) <= MAX_LINE:
        return short
    inner = indent + INDENT
    made = ["["]
    pending: list[tuple[str, str]] = []
    for item in value.items:
        pending += [(inner + comment, "") for comment in item.before]
        pending.append((f"{inner}{_value(item.value, '', inner)},", item.comment))
    pending += [(inner + comment, "") for comment in value.at_end]
    made += _aligned(pending)
    return _NEW_LINE.join([*made, indent + "]"])


def _on_one_line(value: Value) -> str | None:
    """None for a list with a comment in it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Inline):
        return _inline(value)
    parts = [_on_one_line(item.value) for item in value.items]
    if value.at_end or any(item.before or item.comment for item in value.items):
        return None
    known = [part for part in parts if part is not None]
    return f"[{', '.join(known)}]" if len(known) == len(parts) else None


def _inline(value: Inline) -> str:
    if not value.pairs:
        return "{}"
    # A list in an inline table may be broken over lines, and has to be where it holds comments.
    pairs = (f"{key} = {_on_one_line(inner) or _value(inner, '', '')}" for key, inner in value.pairs)
    return "{ " + ", ".join(pairs) + " }"


def _comments(lines: list[Line]) -> list[str]:
    """Every comment, in order."""
    found: list[str] = []
    for line in lines:
        found += _comments_in(line.value)
        found += [line.comment] if line.comment else []
    return found


def _comments_in(value: Any) -> Iterator[str]:
    if isinstance(value, List):
        for item in value.items:
            yield from item.before
            yield from _comments_in(item.value)
            if item.comment:
                yield item.comment
        yield from value.at_end
    elif isinstance(value, Inline):
        for _, inner in value.pairs:
            yield from _comments_in(inner)
