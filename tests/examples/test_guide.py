"""The recipes of docs/guests.md work as they are written: the test reads files and commands from the page itself."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.examples.guest import Guest, connected, run
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "guests.md").read_text()
COMMAND_TIMEOUT_S = 250


def block(language: str, name: str) -> str:
    """The fenced block that begins with this language and file name."""
    found = re.findall(rf"^```{language} {re.escape(name)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks are called {name}"
    return str(found[0])


def commands_naming(name: str, tool: str = "") -> list[list[str]]:
    """The commands of the shell block that makes this file (with this tool), with the tools of this environment."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if f"-o {name}" in text and tool in text]
    scripts = sysconfig.get_path("scripts")
    text = found.replace("tools/bin/python", sys.executable).replace("tools/bin/", f"{scripts}/")
    return [shlex.split(line) for line in text.splitlines()]


def carry_out(commands: list[list[str]], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(directory / "cache"))
    for command in commands:
        expanded = [str(path) for word in command for path in (sorted(directory.glob(word)) if "*" in word else [word])]
        done = subprocess.run(
            expanded, cwd=directory, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_program_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hello.c").write_text(block("c", "hello.c"))
    (tmp_path / "hello.wit").write_text(block("wit", "hello.wit"))
    carry_out(commands_naming("hello.wasm"), tmp_path, monkeypatch)
    binary = tmp_path / "hello.wasm"
    assert binary.stat().st_size < 5000
    assert run(binary, "hello", "wörld") == (0, "hello\nwörld\n")


def test_the_server_with_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo.c").write_text(block("c", "echo.c"))
    for name in ("lib", "wit"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    carry_out(commands_naming("echo.wasm"), tmp_path, monkeypatch)
    port = free_port()
    with Guest(tmp_path / "echo.wasm", env={"LOWCLOUD_LISTEN_ECHO": f"127.0.0.1:{port}"}) as guest:
        guest.wait_output("echo listens")
        with connected(port) as connection:
            file = connection.makefile("rb")
            for line in (b"hello\n", b"\n", b"x" * 9000 + b"\n"):
                connection.sendall(line)
                assert file.readline() == line
