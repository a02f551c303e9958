"""Generated TOML documents that know where they put each key and value."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from deployer.language.positions import Path, Place


def json_text(text: str) -> str:
    """A basic string: JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)


BARE = "abcXYZ019_-"
names = st.one_of(
    st.text(BARE, min_size=1, max_size=4),
    st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=4),
)
numbers = st.sampled_from(["1", "-17", "0xff", "1_000", "3.5", "1e9", "-inf", "nan", "true", "false"])
times = st.sampled_from(["1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00.5+01:00"])
basic = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=8).map(json_text)
literal = st.text('abc #"[]{}=,.é', max_size=8).map(lambda text: f"'{text}'")
long_basic = st.sampled_from(
    [
        '""""""',
        '"""a\nb"""',
        '"""\n"quoted" # no comment\n"""',
        '"""x""\\""""',
        '"""two quotes at the end"""""',
        '"""\\\n   y"""',
    ]
)
long_literal = st.sampled_from(["''''''", "'''a\n'b' [c]\n'''", "'''it's'''", "'''two at the end'''''"])
leaves = st.one_of(numbers, times, basic, literal, long_basic, long_literal)

blank = st.sampled_from(["", " ", "\t", "  "])
gap = st.sampled_from(["", " ", "\n", ' # a comment ] } = "\n', "\n\n\t"])
line_end = st.sampled_from(["\n", "  \n", " # comment = [x]\n", "\r\n", "\n\n# alone\n\n"])


class Writer:
    """Text with a cursor."""

    def __repr__(self) -> str:
        return f"Writer({self.text!r})"

    def __init__(self) -> None:
        self.text = ""
        self.keys: dict[Path, Place] = {}
        self.values: dict[Path, Place] = {}

    def here(self) -> Place:
        # As tomllib does, columns are counted after \r\n has become \n.
        written = self.text.replace("\r\n", "\n")
        return Place(written.count("\n") + 1, len(written) - written.rfind("\n"))

    def add(self, text: str) -> None:
        self.text += text


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    """A valid document."""
    out = Writer()
    out.add(draw(st.sampled_from(["", "# head\n", "\n \n"])))
    top: set[str] = set()
    _pairs(draw, out, (), taken=top)
    for name in draw(st.lists(names, max_size=4, unique=True)):
        if name in top:
            continue
        match draw(st.sampled_from(["table", "tables", "below"])):
            case "table":
                _header(draw, out, (name,), "[", "]", noted=((name,),))
                _pairs(draw, out, (name,), taken=set())
            case "tables":
                for index in range(draw(st.integers(1, 3))):
                    _header(draw, out, (name,), "[[", "]]", noted=((name,), (name, index)))
                    taken: set[str] = set()
                    _pairs(draw, out, (name, index), taken=taken)
                    inner = draw(names)
                    if inner not in taken and draw(st.booleans()):
                        _header(draw, out, (name, inner), "[", "]", noted=((name,), (name, index, inner)))
                        _pairs(draw, out, (name, index, inner), taken=set())
            case "below":
                inner = draw(names)
                _header(draw, out, (name, inner), "[", "]", noted=((name,), (name, inner)))
                _pairs(draw, out, (name, inner), taken=set())
                if draw(st.booleans()):
                    _header(draw, out, (name,), "[", "]", noted=((name,),))
                    _pairs(draw, out, (name,), taken={inner})
    return out


def _key(draw: st.DrawFn, out: Writer, name: str) -> Place:
    styles = [json_text(name)]
    if name and all(c in BARE for c in name):
        styles.append(name)
    if name.isprintable() and "'" not in name:
        styles.append(f"'{name}'")
    place = out.here()
    out.add(draw(st.sampled_from(styles)))
    return place


def _header(
    draw: st.DrawFn, out: Writer, parts: tuple[str, ...], opening: str, closing: str, noted: tuple[Path, ...]
) -> None:
    out.add(draw(blank) + opening)
    for index, part in enumerate(parts):
        if index:
            out.add(draw(blank) + "." + draw(blank))
        else:
            out.add(draw(blank))
        place = _key(draw, out, part)
        for path in noted:
            if [p for p in path if isinstance(p, str)] == list(parts[: index + 1]):
                out.values.setdefault(path, place)
                if isinstance(path[-1], str):
                    out.keys.setdefault(path, place)
    out.add(draw(blank) + closing + draw(line_end))


def _pairs(draw: st.DrawFn, out: Writer, table: Path, taken: set[str]) -> None:
    for name in draw(st.lists(names, max_size=3, unique=True)):
        if name not in taken:
            taken.add(name)
            out.add(draw(blank))
            _pair(draw, out, table, name, depth=0)
            out.add(draw(line_end))


def _pair(draw: st.DrawFn, out: Writer, table: Path, name: str, depth: int) -> None:
    path: Path = table
    for index, part in enumerate([name, *draw(st.lists(names, max_size=2))]):
        if index:
            out.values[path] = out.keys[path]
            out.add(draw(blank) + "." + draw(blank))
        path = (*path, part)
        out.keys[path] = _key(draw, out, part)
    out.add(draw(blank) + "=" + draw(blank))
    _value(draw, out, path, depth)


def _value(draw: st.DrawFn, out: Writer, path: Path, depth: int) -> None:
    out.values[path] = out.here()
    kind = draw(st.sampled_from(["leaf", "leaf", "array", "table"])) if depth < 3 else "leaf"
    if kind == "leaf":
        out.add(draw(leaves))
    elif kind == "array":
        out.add("[")
        count = draw(st.integers(0, 3))
        for index in range(count):
            out.add(draw(gap))
            _value(draw, out, (*path, index), depth + 1)
            out.add(draw(gap) + ("," if index < count - 1 or draw(st.booleans()) else ""))
        out.add(draw(gap) + "]")
    else:
        out.add("{" + draw(blank))
        for index, name in enumerate(draw(st.lists(names, max_size=3, unique=True))):
            out.add(("," if index else "") + draw(blank))
            _pair(draw, out, path, name, depth + 1)
            out.add(draw(blank))
        out.add("}")


def paths_in(value: Any, path: Path = ()) -> set[Path]:
    """Every path of a parsed document."""
    found = {path} if path else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found |= paths_in(inner, (*path, key))
    return found
