"""The command as a whole: verbs, common options, exit codes, what is imported."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tools
from tests.tools.command import ROOT, TIMEOUT_S, command, environment, lowcloud
from tools import main

HEAVY = {"aiohttp", "asyncio", "cryptography", "wasmtime", "zstandard", "rich", "ssl", "inspect", "typing_extensions"}


def test_the_version_is_that_of_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert package["project"]["version"] == tools.VERSION
    assert lowcloud("--version").out == f"lowcloud {tools.VERSION}\n"


def test_every_verb_has_a_module_and_every_module_is_a_verb() -> None:
    modules = {path.stem for path in (ROOT / "tools/commands").glob("*.py")} - {"__init__"}
    assert modules == set(main.VERBS)


def test_help_lists_every_verb() -> None:
    text = lowcloud("--help").out
    assert all(re.search(rf"^  {verb} +{re.escape(what)}$", text, re.MULTILINE) for verb, what in main.VERBS.items())
    assert lowcloud().out == text
    assert lowcloud("help").out.strip() == text.strip()


@pytest.mark.parametrize("verb", sorted(main.VERBS))
def test_the_help_of_a_verb_has_examples_that_it_would_accept(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    module = importlib.import_module(f"tools.commands.{verb}")
    examples = [line for line in module.EXAMPLE.strip().splitlines() if f"lowcloud {verb}" in line]
    assert examples
    for example in examples:
        assert example in text
        words = shlex.split(example.partition(f"lowcloud {verb}")[2], comments=True)
        until = next((at for at, word in enumerate(words) if word in ("|", ">")), None)
        prepare = getattr(module, "prepare", list)
        main.parser_of(verb, module).parse_args(prepare(words[:until]))


@pytest.mark.parametrize("verb", ["audit", "host", "operator", "secret", "volume"])
def test_the_help_of_each_action_says_what_it_does_and_has_an_example_of_it(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([verb, "--help"]) == 0
    actions = re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out.partition("  ACTION\n")[2], re.MULTILINE)
    assert len(actions) >= 3
    for action in actions:
        assert main.main([verb, action, "--help"]) == 0
        usage, said, *_, examples = capsys.readouterr().out.split("\n\n")
        assert usage.startswith(f"usage: lowcloud {verb} {action} ") and not said.startswith("positional"), action
        assert f"lowcloud {verb} {action}" in examples


def test_an_unknown_verb_is_bad_usage_and_names_the_nearest() -> None:
    result = lowcloud("hystory")
    assert result.code == 2
    assert "lowcloud history" in result.err


@pytest.mark.parametrize("words", [["push"], ["push", "--nonsense", "x"], ["-C"], ["--nonsense", "ps"], ["audit"]])
def test_bad_usage_ends_with_2_and_a_hint(words: list[str]) -> None:
    result = lowcloud(*words)
    assert result.code == 2
    assert result.out == ""
    assert "hint:" in result.err


def test_with_json_an_error_is_one_object_on_stderr(tmp_path: Path) -> None:
    result = lowcloud("history", "--json", cwd=tmp_path)
    assert result.code == 2
    assert result.out == ""
    assert result.error.keys() == {"kind", "message", "hint", "exit"}
    assert result.error["exit"] == 2
    assert result.error["kind"] == "CloudMissing"


def test_a_cloud_is_found_by_option_variable_and_from_below(tmp_path: Path) -> None:
    assert lowcloud("init", tmp_path / "shop").code == 0
    below = tmp_path / "shop" / "deep" / "down"
    below.mkdir(parents=True)
    assert lowcloud("history", "-C", tmp_path / "shop").code == 0
    assert lowcloud("-C", tmp_path / "shop", "history").code == 0
    assert lowcloud("history", LOWCLOUD_DIR=str(tmp_path / "shop")).code == 0
    assert lowcloud("history", cwd=below).code == 0
    assert lowcloud("history", cwd=tmp_path).code == 2


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        command("--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), bufsize=0
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert err == b""
    assert process.returncode in (0, 141)


def test_an_interruption_is_one_line_and_130(tmp_path: Path) -> None:
    assert lowcloud("init", cwd=tmp_path).code == 0
    read, write = os.pipe()
    with subprocess.Popen(
        command("push", "-"),
        cwd=tmp_path,
        stdin=read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        os.close(read)
        os.write(write, b"x" * 65536 * 2)  # more than a pipe holds: it has begun to read when this returns
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
        os.close(write)
    assert process.returncode == 130
    assert out == b""
    assert err == b"lowcloud: interrupted\n"


def test_an_interruption_just_before_standard_input_is_read_is_noticed() -> None:
    """Nothing of Python's own runs between the two, where it would be noticed anyway."""
    code = """
import ctypes, functools, operator, os
from tools.standard_input import StandardInput
interrupt = functools.partial(ctypes.CDLL(None).kill, os.getpid(), 2)
try:
    list(map(operator.call, [interrupt, functools.partial(StandardInput().read, 1)]))
except KeyboardInterrupt:
    print("interrupted")
"""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=read, stdout=subprocess.PIPE, env=environment(), text=True
    ) as process:
        os.close(read)
        try:
            out, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            os.close(write)  # whoever still reads ends
    assert out == "interrupted\n"


def test_an_unforeseen_error_has_no_traceback_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("something nobody foresaw")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "usage", fail)
    assert main.main(["--help"]) == 1
    shown = capsys.readouterr().err
    assert "internal error: RuntimeError: something nobody foresaw" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("LOWCLOUD_DEBUG", "1")
    assert main.main(["--help"]) == 1
    assert "Traceback" in capsys.readouterr().err


def imported_by(*words: str | Path, cwd: Path) -> set[str]:
    """The modules that a command has loaded at its end."""
    code = f"import sys; from tools.main import main; main({list(map(str, words))!r}); print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, env=environment(), capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines())


def test_the_version_imports_nothing() -> None:
    loaded = imported_by("--version", cwd=ROOT)
    assert not {name for name in loaded if name.split(".")[0] in {"argparse", "msgspec", "cas", "agent", "deployer"}}
    assert not {name for name in loaded if name.startswith("tools.")} - {"tools.main"}


def test_help_imports_no_verb() -> None:
    assert not {name for name in imported_by("--help", cwd=ROOT) if name.startswith("tools.commands")}


def test_history_and_push_import_nothing_heavy(tmp_path: Path) -> None:
    assert lowcloud("init", cwd=tmp_path).code == 0
    loaded = imported_by("history", cwd=tmp_path)
    assert "lmdb" in loaded
    assert not loaded & HEAVY
    (tmp_path / "file").write_bytes(b"tiny")
    assert not imported_by("push", "file", cwd=tmp_path) & (HEAVY - {"zstandard"})
