"""What deltas are made with in the benchmark: ours and its peers, each as commands that encode and decode one pair.

A tool gets files and leaves files, in child processes, so that all are measured alike: libraries from inside the child
(see libraries.py), commands by the CPU time that the system charged to them (`rusage`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import delta


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    start_s: float = 0.0
    start_bytes: int | None = None
    """Peak memory before the inputs are read; only libraries say."""
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Tool:
    """`encode(base, target, patch, scratch)`, `decode(base, patch, target, scratch)`: paths; the third is made."""

    name: str
    version: str
    encode: Callable[[Path, Path, Path, Path], Cost]
    decode: Callable[[Path, Path, Path, Path], Cost]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("lowcloud")


def run(*command: str | Path) -> Cost:
    """Runs a command to its end. Raises CalledProcessError with its messages where it fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        said, messages = child.stdout.read(), child.stderr.read()  # neither says more than a pipe holds
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, [str(part) for part in command], said, messages)
    if said.startswith("{"):
        return Cost(**json.loads(said))
    return Cost(usage.ru_utime + usage.ru_stime)


def library(name: str, version: str) -> Tool:
    def call(act: str) -> Callable[[Path, Path, Path, Path], Cost]:
        return lambda base, given, made, _: run(
            sys.executable, "-m", "benchmarks.libraries", name, act, base, given, made
        )

    return Tool(name, version, call("encode"), call("decode"))


def our_version() -> str:
    """Changes whenever anything does that could change a patch or the time it takes."""
    directory = Path(delta.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for suffix in ("py", "c", "h", "wasm") for path in directory.rglob(f"*.{suffix}")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def command_version(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return f"{command[0]} {found[0] if found else 'of unknown version'}"


def zstd(level: str) -> Tool:
    options = ("--long=31", "-q", "-f", "--single-thread")
    strength = ["--ultra", "-22"] if level == "22" else [f"-{level}"]

    def encode(base: Path, target: Path, patch: Path, _: Path) -> Cost:
        return run("zstd", *strength, *options, f"--patch-from={base}", target, "-o", patch)

    def decode(base: Path, patch: Path, target: Path, _: Path) -> Cost:
        return run("zstd", "-d", *options, f"--patch-from={base}", patch, "-o", target)

    return Tool(f"zstd-{level}", command_version("zstd", "--version"), encode, decode)


def xdelta3() -> Tool:
    def window(base: Path) -> list[str]:
        return ["-B", str(max(base.stat().st_size, 1 << 19))]

    def encode(base: Path, target: Path, patch: Path, _: Path) -> Cost:
        return run("xdelta3", "-e", "-9", "-S", "lzma", "-f", *window(base), "-s", base, target, patch)

    def decode(base: Path, patch: Path, target: Path, _: Path) -> Cost:
        return run("xdelta3", "-d", "-f", *window(base), "-s", base, patch, target)

    return Tool("xdelta3", command_version("xdelta3", "-V"), encode, decode)


def ostree() -> Tool:
    """Two commits that hold the one file each; only making and applying the delta between them is measured."""

    def commit(repo: Path, file: Path, scratch: Path) -> str:
        tree = scratch / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        shutil.copyfile(file, tree / "file")
        command = [
            "ostree",
            "commit",
            f"--repo={repo}",
            "--branch=b",
            "--timestamp=@1",
            "--owner-uid=0",
            "--owner-gid=0",
        ]
        return subprocess.run([*command, str(tree)], check=True, capture_output=True, text=True).stdout.strip()

    def repository(scratch: Path, name: str, mode: str) -> Path:
        repo = scratch / name
        subprocess.run(["ostree", "init", f"--repo={repo}", f"--mode={mode}"], check=True, capture_output=True)
        return repo

    def encode(base: Path, target: Path, patch: Path, scratch: Path) -> Cost:
        repo = repository(scratch, "source", "archive")
        old, new = commit(repo, base, scratch), commit(repo, target, scratch)
        wanted = ["--inline", "--min-fallback-size=0", f"--from={old}", f"--to={new}", f"--filename={patch}"]
        return run("ostree", "static-delta", "generate", f"--repo={repo}", *wanted)

    def decode(base: Path, patch: Path, target: Path, scratch: Path) -> Cost:
        repo = repository(scratch, "client", "bare-user")
        commit(repo, base, scratch)
        cost = run("ostree", "static-delta", "apply-offline", f"--repo={repo}", patch)
        is_new = [path for path in repo.glob("objects/*/*.file") if path.read_bytes() != base.read_bytes()]
        shutil.copyfile(is_new[0] if is_new else base, target)
        return cost

    return Tool("ostree", command_version("ostree", "--version"), encode, decode)


def installed(distribution: str) -> str:
    return f"{distribution} {importlib.metadata.version(distribution)}"


TOOLS: dict[str, Callable[[], Tool]] = {
    "lowcloud": lambda: library("lowcloud", our_version()),
    "lowcloud-fast": lambda: library("lowcloud-fast", our_version()),
    "lowcloud-best": lambda: library("lowcloud-best", our_version()),
    "bsdiff4": lambda: library("bsdiff4", installed("bsdiff4")),
    "hdiffpatch-zstd": lambda: library("hdiffpatch-zstd", installed("hdiffpatch")),
    "hdiffpatch-lzma2": lambda: library("hdiffpatch-lzma2", installed("hdiffpatch")),
    "zstd-19": lambda: zstd("19"),
    "zstd-22": lambda: zstd("22"),
    "xdelta3": xdelta3,
    "ostree": ostree,
}
DEFAULT = [name for name in TOOLS if name not in ("lowcloud-best", "zstd-22")]


def find(names: list[str]) -> tuple[list[Tool], list[str]]:
    """The tools that are installed here, and the names of those that are not."""
    found, missing = [], []
    for name in names:
        try:
            found.append(TOOLS[name]())
        except (OSError, importlib.metadata.PackageNotFoundError):
            missing.append(name)
    return found, missing
