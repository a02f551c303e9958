"""What a command prints: a result as JSON or as text, remarks on stderr, progress only where somebody watches.

A verb decides what to say; this module decides how it reaches the terminal. Tables are written here, because importing
`rich` costs more than a fast verb may take; `rich` draws progress bars for long work, on a terminal only.

Names, messages and reasons come from files, hosts and guests: control characters in them are shown as escapes, so that
nothing that is listed can move the cursor or hide a line.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_OUTPUT_LINES = 40
"""Of a guest's output below a message on it."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Progress(Protocol):
    def __call__(self, done: int, total: int | None) -> None:
        """So much of the work is done, of so much (None where nobody knows yet)."""
        ...


class Output:
    """Where a verb's result goes."""

    def __init__(self, stdout: TextIO, stderr: TextIO, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = stdout
        self._stderr = stderr
        self._above_bar: Callable[[str], None] | None = None
        for stream in (stdout, stderr):
            _never_fail_on_a_character(stream)

    def json(self, value: Any) -> None:
        """Print a value as one line of JSON. Structs become objects, tuples arrays, paths text."""
        import msgspec

        self._stdout.write(msgspec.json.encode(value, enc_hook=_as_text).decode() + "\n")

    def line(self, text: str = "") -> None:
        """A line for a person; not printed with --json."""
        if not self.as_json:
            self._stdout.write(text + "\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """Aligned columns for a person; `right` names the columns of numbers."""
        for row in table_lines(head, rows, right=right):
            self.line(row)

    def remark(self, text: str) -> None:
        """Something worth knowing that is not the result: to stderr, for a person."""
        if self.as_json:
            return
        if self._above_bar is not None:
            self._above_bar(text)
            return
        self._stderr.write(text + "\n")
        self._stderr.flush()

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self._stdout.flush()
        self._stdout.buffer.write(data)
        self._stdout.buffer.flush()

    @property
    def on_terminal(self) -> bool:
        return self._stdout.isatty()

    @contextlib.contextmanager
    def progress(self, label: str, *, unit: str = "bytes") -> Iterator[Progress]:
        """A bar on stderr while the block runs, where stderr is a terminal."""
        if self.as_json or not self._stderr.isatty():
            yield _unseen
            return
        with _bar(label, unit) as (update, self._above_bar):
            try:
                yield update
            finally:
                self._above_bar = None

    def flush(self) -> None:
        self._stdout.flush()


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a table, the last column unpadded."""
    cells = [list(head)] + [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [
            " " * (width - _width(cell)) + cell if name in right else cell + " " * (width - _width(cell))
            for name, cell, width in zip(head, row, widths, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def printable(text: str) -> str:
    """The same text with control characters and undecodable bytes as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> list[str]:
    """The same for a text of several lines. All but the first are indented, so that none passes for one of ours."""
    first, *others = text.split("\n")
    return [printable(first), *(f"  {printable(line.strip(' '))}" for line in others)]


def size(count: int | float) -> str:
    """1536 -> `1.5 KiB`."""
    amount = float(count)
    for unit in UNITS:
        if abs(amount) < 1024 or unit == UNITS[-1]:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("the last unit takes everything")


def counted(number: int, one: str, more: str = "") -> str:
    """`1 blob`, `3 blobs`, `1 entry`."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def quoted_output(text: str) -> Iterator[str]:
    """The end of what a guest has printed, as lines below a message about it."""
    lines = text.splitlines()
    if len(lines) > MAX_OUTPUT_LINES:
        yield f"  | … {len(lines) - MAX_OUTPUT_LINES} lines before; --json has them"
    yield from (f"  | {printable(line)}" for line in lines[-MAX_OUTPUT_LINES:])


def iso_time(at_unix_ns: int) -> str:
    """ISO 8601 in UTC with microseconds, as JSON shows an instant."""
    import time

    whole, rest = divmod(at_unix_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest // 1000:06d}Z"


def local_time(at_unix_ns: int) -> str:
    """As a table shows an instant: local time, to the second."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_unix_ns // 1_000_000_000))


def ago(seconds: float) -> str:
    """`42s`, `5m`, `3h`, `12d`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // unit))}{name}"
    return f"{int(seconds // 86400)}d"


def shorten(digest: str | None) -> str:
    """A digest as a table shows it: enough digits for every command to accept it."""
    return digest[:15] if digest else "-"


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)


def _as_text(value: Any) -> str:
    return str(value)


def _unseen(done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def _never_fail_on_a_character(stream: TextIO) -> None:
    reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _bar(label: str, unit: str) -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """A bar, and what prints a line above it: written past the bar, a line would be appended to it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = [DownloadColumn(binary_units=True), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    console = Console(file=sys.stderr)
    with RichProgress(TextColumn("{task.description}"), BarColumn(), *columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, visible=False)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield update, lambda text: console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
