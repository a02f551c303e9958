"""From any exception to what a person, a script and the shell see: a message, a hint, an exit code.

The table names classes as text, so that reporting an error of one part imports no other part. Everything that lowcloud
raises on purpose carries its own message and `hint`; this module adds only what the command knows: the exit code, and
where to find a traceback for what nobody foresaw.

With `--json` an error is one JSON object on stderr, so that stdout holds results and nothing else:

    {"error": {"kind": "BlobMissing", "message": "…", "hint": "…", "exit": 1, "problems": […], "output": "…"}}

`problems` is there for an invalid definition (`path`, `line`, `column`, `message`, `hint` each), `output` where a guest
that did not become ready has printed something.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

DONE = 0
FAILED = 1
BAD_INPUT = 2
CHANGES = 3
"""`plan --exit-code` where something would change."""
PARTIAL = 4
"""Applied in part, or reverted."""
INTERRUPTED = 130
PIPE_CLOSED = 141
"""What a shell reports for a program whose reader went away."""

EXIT_OF_CLASS = {
    "cas.errors.NotADigest": BAD_INPUT,
    "cas.errors.AmbiguousDigest": BAD_INPUT,
}
"""For classes that do not say it themselves by `exit_code`. A subclass counts as its base; the rest is FAILED."""


class CommandError(Exception):
    """Something the command itself found out."""

    exit_code = FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CommandError):
    """The words of the command line do not make sense together, or name what is not there."""

    exit_code = BAD_INPUT


class Explained:
    """What is said about one error."""

    def __init__(self, error: BaseException) -> None:
        self.kind = type(error).__name__
        self.message = _message(error)
        self.hint = _hint(error)
        self.exit_code = _exit_code(error)
        self.problems = [_problem(p) for p in getattr(error, "problems", ())]
        self.output = str(getattr(getattr(error, "refusal", None), "output_tail", ""))

    def as_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "exit": self.exit_code,
        }
        if self.problems:
            fields["problems"] = self.problems
        if self.output:
            fields["output"] = self.output
        return fields

    def lines(self) -> Iterator[str]:
        from deployer.language.problems import MAX_PROBLEMS_SHOWN
        from tools.output import printable_lines, quoted_output

        if self.problems:
            for problem in self.problems[:MAX_PROBLEMS_SHOWN]:
                place = f"{problem['line']}:{problem['column']}:" if problem["line"] else ""
                yield from printable_lines(f"{problem['path']}:{place} {problem['message']}")
                if problem["hint"]:
                    yield from printable_lines(f"  hint: {problem['hint']}")
            if len(self.problems) > MAX_PROBLEMS_SHOWN:
                yield f"… and {len(self.problems) - MAX_PROBLEMS_SHOWN} more"
            return
        yield from printable_lines(f"lowcloud: {self.message}")
        if self.output:
            yield "  the guest printed:"
            yield from quoted_output(self.output)
        if self.hint:
            yield f"  hint: {self.hint}"


def report(error: BaseException, stream: TextIO, *, as_json: bool = False) -> int:
    """Say what happened, and return the exit code."""
    error = _cause(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, BrokenPipeError) and error.filename is None:
        return PIPE_CLOSED
    explained = Explained(error)
    try:
        if os.environ.get("LOWCLOUD_DEBUG") == "1" and not isinstance(error, KeyboardInterrupt):
            import traceback

            traceback.print_exception(error, file=stream)
        _write(explained, stream, as_json)
    except (OSError, ValueError):  # stderr is closed: the exit code is all that is left to say
        pass
    return explained.exit_code


def silence_remains(error: BaseException) -> None:
    """What an interruption has left half made (a coroutine that was never awaited, an event loop without its parts)
    complains while it is cleared away; to a user that is no news."""
    interrupted = isinstance(_cause(error), KeyboardInterrupt | SystemExit)
    if interrupted and os.environ.get("LOWCLOUD_DEBUG") != "1":
        import sys
        import warnings

        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None


def _write(explained: Explained, stream: TextIO, as_json: bool) -> None:
    from tools.output import printable

    if as_json:
        import msgspec

        text = msgspec.json.encode({"error": explained.as_dict()}).decode()
    else:
        text = "\n".join(printable(line) for line in explained.lines())
    stream.write(text + "\n")
    stream.flush()


def _cause(error: BaseException) -> BaseException:
    """Tasks that ran side by side fail as a group: the first error is the one to explain."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _names(error: BaseException) -> Iterator[str]:
    return (f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    return next((EXIT_OF_CLASS[name] for name in _names(error) if name in EXIT_OF_CLASS), FAILED)


def _on_purpose(error: BaseException) -> bool:
    """Every error class of lowcloud has a hint, if an empty one."""
    return hasattr(error, "hint")


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror}"
    if _on_purpose(error) or isinstance(error, OSError):
        return str(error) or type(error).__name__
    return f"internal error: {type(error).__name__}: {error}"


def _hint(error: BaseException) -> str:
    if _on_purpose(error):
        return str(getattr(error, "hint", ""))
    if isinstance(error, KeyboardInterrupt | OSError):
        return ""
    return "this is a bug in lowcloud; LOWCLOUD_DEBUG=1 prints the traceback"


def _problem(problem: Any) -> dict[str, Any]:
    return {
        "path": str(problem.path),
        "line": problem.line,
        "column": problem.column,
        "message": problem.message,
        "hint": problem.hint,
    }
