"""How names, values and paths of a definition are shown to people."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterable

MAX_NAMES_IN_HINT = 20
MAX_NAMES_COMPARED = 500
MAX_SHOWN_CHARS = 60
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def quoted(text: str) -> str:
    """A text as TOML writes it, shortened, in one line."""
    shown = text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "…"
    if shown.isprintable() and '"' not in shown and "\\" not in shown:
        return f'"{shown}"'
    return '"' + shown.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def toml_text(text: str) -> str:
    """A TOML basic string, whole. JSON's escapes are TOML's, except that TOML wants DEL escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(name: str) -> str:
    """A key as TOML writes it, without quotes where it needs none."""
    return name if _BARE.fullmatch(name) else toml_text(name)


def dotted(path: Iterable[str | int]) -> str:
    """A path as a TOML key: `process.web.config."/etc/web.toml"`, with indices as `hosts[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else quoted(part))
    return text


def kind_of(raw: object) -> str:
    """What a TOML value is, in words."""
    match raw:
        case bool():
            return "true or false"
        case str():
            return f"the text {quoted(raw)}"
        case int() | float():
            return f"the number {raw}"[:MAX_SHOWN_CHARS]
        case list():
            return "a list"
        case dict():
            return "a table"
        case datetime.date() | datetime.time():
            return "a date or time"
    return "this"


@functools.lru_cache(maxsize=1024)
def nearest(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that this one is probably meant to be. Among very many names, only those are looked at that begin
    alike: a definition of a whole fleet may be wrong in every line."""
    from difflib import get_close_matches

    if len(known) > MAX_NAMES_COMPARED:
        known = tuple(one for one in known if one[:1] == name[:1])[:MAX_NAMES_COMPARED]
    return next(iter(get_close_matches(name, known, 1)), None)


def near_hint(name: str, known: Iterable[str], what: str) -> str:
    """The nearest known name, or a list of them all where none is near."""
    names = list(known)
    near = nearest(name, tuple(names))
    if near:
        return f"did you mean {_plain(near)}?"
    if not names:
        return ""
    shown = ", ".join(map(_plain, names[:MAX_NAMES_IN_HINT])) + (", …" if len(names) > MAX_NAMES_IN_HINT else "")
    return f"{what}: {shown}"


def _plain(name: str) -> str:
    """A name as it is, unless it would do something to a terminal."""
    return name if name.isprintable() else quoted(name)
