"""The `lowcloud` command: finds the verb, imports only that verb's module, and turns every outcome into an exit code.

Starting fast is a feature: this module imports nothing but what the interpreter has loaded already. `VERBS` lists the
verbs so that `--help` needs none of their modules; a verb is the module `tools.commands.<verb>` with

    EXAMPLE: str                          what `--help` shows at its end
    configure(parser) -> None             adds its arguments
    run(args, out) -> int                 does it, and returns the exit code
    prepare(words) -> list[str]           optional: what its words are to argparse
    SHORT = True                          optional: it is always over in a moment

Common options (`-C`, `-e`, `--json`) may stand before the verb or after it.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

TYPE_CHECKING = False  # as `typing` has it; importing that would take a third of the time of `--version`
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import ModuleType
    from typing import Any, NoReturn

    from tools.output import Output

VERBS: dict[str, str] = {
    "init": "make a new cloud in a directory",
    "up": "run a whole cloud on this machine: an agent per loopback host, then apply",
    "down": "end what `up` started",
    "agent": "run the daemon of one host",
    "push": "store files as blobs and print their hashes",
    "pull": "write a blob back to a file",
    "fmt": "lay the definition's files out in the one canonical way",
    "show": "print the definition as a whole, and where each value comes from",
    "secret": "seal a secret to the hosts that need it, list them, or forget one",
    "resolve": "turn every name of the definition into a hash, and write the lock file",
    "plan": "show what an apply would change, and why",
    "apply": "make the hosts run what the definition says",
    "rollback": "return to an earlier release, bit for bit",
    "history": "list the releases",
    "diff": "show what differs between two releases, field by field",
    "ps": "list the processes on all hosts",
    "logs": "print what a process has written",
    "status": "compare what runs with what should run",
    "audit": "say what ran at a time, and prove the records",
    "host": "show a host's means and guarantees, or admit a new host",
    "peers": "show what hosts have taken from each other, how fast, and who is not believed",
    "sync": "compare this cloud's blobs with a host's, and fetch or send what one of them lacks",
    "volume": "list volumes, keep and restore snapshots of them, or delete one",
    "operator": "admit another operator of this cloud, on another machine",
    "migrate": "move the history or the blobs to another engine: etcd, S3, or back",
    "bundle": "write a release, or what is new in it, to a file for a place without a network",
    "unbundle": "take in what `bundle` wrote: stores a release, runs nothing",
    "restart": "run the same version of a process again, by the same swap",
    "gc": "remove the blobs that nothing refers to",
    "check": "verify every blob of the store",
    "demo": "show all of it on this machine: deploy, swap under load, roll back, audit",
}

_EXPLAINED_OPTIONS = """\
common options:
  -C DIR      the cloud's directory (default: LOWCLOUD_DIR, or the nearest parent with lowcloud.toml)
  -e NAME     the overlay: shop.NAME.toml beside shop.toml, with a lock and a history of its own
  --json      print JSON with a stable schema instead of text
  --version   print the version
  --help      print help; after a verb: that verb's help with an example
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code (see `tools.errors`) and never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        common, rest = _split(words)
        if "--version" in common:
            return _print(f"lowcloud {_version()}")
        if "--help" in common or not (rest or common):
            return _print(usage())
        from tools.output import Output

        out = Output(sys.stdout, sys.stderr, as_json="--json" in words)
        code = _run(common, rest, out)
        out.flush()
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (0, None):  # argparse after --help
            return 0
        from tools import errors

        errors.silence_remains(error)
        code = errors.report(error, sys.stderr, as_json="--json" in words)
        if code == errors.PIPE_CLOSED:
            _discard_stdout()
    return code


def usage() -> str:
    """What `lowcloud --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    start = "usage: lowcloud [-C DIR] [-e NAME] [--json] VERB ...\n\nverbs:\n"
    return start + "\n".join(lines) + "\n\n" + _EXPLAINED_OPTIONS


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The options before the verb, and the verb with all after it."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in ("-C", "-e") else 1
    common = ["--help" if word == "-h" else word for word in words[:at]]
    return common, words[at:]


def _run(common: list[str], rest: list[str], out: Output) -> int:
    from tools.errors import UsageError

    if not rest:
        raise UsageError("no verb given", hint="`lowcloud --help` lists them")
    verb, *words = rest
    if verb == "help":
        out.line(usage())
        return 0
    if verb not in VERBS:
        raise UsageError(f"no verb {verb!r}", hint=_nearest(verb))
    with _collecting_no_garbage() as collect_again:
        _ease_import_of_msgspec()
        module = _load(verb)
        prepare = getattr(module, "prepare", list)
        args = parser_of(verb, module).parse_args(common + prepare(words))
        if not getattr(module, "SHORT", False):
            collect_again()
        return int(module.run(args, out))


@contextmanager
def _collecting_no_garbage() -> Iterator[Callable[[], None]]:
    """Importing makes a great many objects that all stay: searching them for garbage, then and once more when the
    interpreter ends, would take a fifth of a fast command's time. A verb that is over in a moment (`SHORT`) does
    without it to its end."""
    gc.disable()
    try:
        yield gc.enable
    finally:
        gc.enable()
        gc.freeze()


def _load(verb: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"tools.commands.{verb}")


def parser_of(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one verb, common options included."""
    import argparse

    from tools.errors import UsageError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(message, hint=f"`{self.prog} --help` shows how")

    class Help(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_columns())  # otherwise argparse imports `shutil` for it

    parser = Parser(
        prog=f"lowcloud {verb}",
        description=VERBS[verb],
        epilog=_examples(module.EXAMPLE.strip().splitlines()),
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("-C", dest="directory", metavar="DIR", default=os.environ.get("LOWCLOUD_DIR"), help="the cloud")
    parser.add_argument("-e", dest="overlay", metavar="NAME", help="the overlay, with its own lock and history")
    parser.add_argument("--json", action="store_true", help="print JSON")
    module.configure(parser)
    _explain_actions(parser, module)
    return parser


def _explain_actions(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """The help of an action (`volume restore`) has what the verb's says of it, and its own of the verb's examples."""
    import argparse

    for actions in parser._actions:
        if not isinstance(actions, argparse._SubParsersAction):
            continue
        said = {choice.dest: choice.help for choice in actions._choices_actions}
        for name, action in actions.choices.items():
            own = [line for line in module.EXAMPLE.splitlines() if f"{action.prog} " in f"{line} "]
            action.description, action.epilog = said[name], _examples(own)
            action.formatter_class, action.allow_abbrev = parser.formatter_class, parser.allow_abbrev


def _examples(lines: Iterable[str]) -> str:
    return "examples:\n" + "".join(f"  {line}\n" for line in lines)


def _nearest(word: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, VERBS, n=1)
    return f"did you mean `lowcloud {near[0]}`?" if near else "`lowcloud --help` lists them"


def _ease_import_of_msgspec() -> None:
    """Spare two imports that are a third of msgspec's own. It prefers `typing_extensions` (which imports `inspect`) for
    three names that `typing` has since Python 3.11, and takes those where the import fails: so it fails once. And it
    imports `uuid`, which imports `platform` only to learn the system's name: so something else tells it."""
    modules: dict[str, Any] = sys.modules
    if "msgspec" in modules:
        return
    stand_ins = {"typing_extensions": None, "platform": SimpleNamespace(system=lambda: os.uname().sysname)}
    absent = {name: stand_in for name, stand_in in stand_ins.items() if name not in modules}
    modules.update(absent)  # None is how the import system spells "not there"
    try:
        __import__("msgspec")
    finally:
        for name in absent:
            del modules[name]


def _columns() -> int:
    """How wide help may be."""
    try:
        return max(40, int(os.environ.get("COLUMNS") or os.get_terminal_size().columns) - 2)
    except (ValueError, OSError):
        return 78


def _version() -> str:
    from tools import VERSION

    return VERSION


def _print(text: str) -> int:
    print(text.rstrip("\n"))
    sys.stdout.flush()
    return 0


def _discard_stdout() -> None:
    """The reader is gone. What is still in the buffer must not raise when the interpreter flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
