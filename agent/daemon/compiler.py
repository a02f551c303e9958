"""Compiling a program in a process of its own, bounded in time and memory, so that no binary can harm the agent.

Run as `python -P -m agent.daemon.compiler AGENT BINARY CODE BYTES`: it reads the one, writes the other, and prints a
`Verdict` as JSON. The compiler is large and works on hostile input, so it may crash, spin or eat memory: the process
that waits for it (`compile_file`) kills it at a deadline, and the kernel limits its memory. It dies with the agent.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec

COMPILE_WITHIN_S: Final = 300.0
COMPILE_MEMORY_BYTES: Final = 6 << 30
MAX_BINARY_BYTES: Final = 256 << 20
MAX_VERDICT_BYTES: Final = 64 << 10
SMALLER: Final = "make the program smaller"
NICENESS: Final = 10
"""Compiling gives way to the guests that serve."""


class CompileFailed(Exception):
    """A binary that this host cannot compile or run."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Verdict(msgspec.Struct, frozen=True):
    """What the compiling process says."""

    kind: Literal["core", "component", ""] = ""
    problem: str = ""
    hint: str = ""


async def compile_file(
    binary: Path,
    code: Path,
    *,
    within_s: float = COMPILE_WITHIN_S,
    memory_bytes: int = COMPILE_MEMORY_BYTES,
) -> Literal["core", "component"]:
    """Compile the program in `binary` into `code`, which is complete when this returns; its kind. Raises CompileFailed.
    Cancelling kills the compiler."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "agent.daemon.compiler"),
        *(str(os.getpid()), str(binary), str(code), str(memory_bytes)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=subprocess_environment(),
        limit=MAX_VERDICT_BYTES,
    )
    try:
        async with asyncio.timeout(within_s):
            said = await _read_verdict(process)
            status = await process.wait()
    except TimeoutError as error:
        raise CompileFailed(f"compiling took longer than {within_s:.0f} s", hint=SMALLER) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    verdict = _verdict(said, status)
    if verdict.problem or not verdict.kind:
        raise CompileFailed(verdict.problem or "the compiler said nothing", hint=verdict.hint)
    return verdict.kind


def subprocess_environment() -> dict[str, str]:
    """An environment in which `python -P -m agent.…` finds this very package, installed or not."""
    here = str(Path(__file__).parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, path] if path else [here])}


async def _read_verdict(process: asyncio.subprocess.Process) -> bytes:
    if process.stdout is None:
        raise AssertionError("the compiler was started without a pipe")
    said = await process.stdout.read(MAX_VERDICT_BYTES)
    while await process.stdout.read(MAX_VERDICT_BYTES):
        pass
    return said


def _verdict(said: bytes, status: int) -> Verdict:
    if status < 0:
        name = signal.Signals(-status).name
        return Verdict(problem=f"the compiler ended with {name}, out of memory perhaps", hint=SMALLER)
    try:
        return msgspec.json.decode(said, type=Verdict)
    except msgspec.MsgspecError:
        return Verdict(problem=f"the compiler ended with status {status} and said nothing")


def main(agent: int, binary: Path, code: Path, memory_bytes: int) -> int:
    """The compiling process of the agent with this pid, which may have ended already."""
    from agent.sandbox import engine, linux

    linux.die_with_parent(agent, signal.SIGKILL)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    try:
        kind, compiled = engine.compile_binary(binary.read_bytes())
    except engine.BinaryInvalid as error:
        verdict = Verdict(problem=str(error), hint=error.hint)
    except MemoryError:
        verdict = Verdict(problem=f"compiling needs more than {memory_bytes >> 20} MiB", hint=SMALLER)
    else:
        with code.open("wb") as file:
            file.write(compiled)
            file.flush()
            os.fsync(file.fileno())
        verdict = Verdict(kind=kind)
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    return 0 if verdict.kind else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
