"""Guests as operating-system processes, for tests: started, waited for, killed; without agent and supervisor."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from agent.sandbox.engine import CodeKind, compile_binary

DEADLINE_S = 60.0


@functools.cache
def compiled(binary: Path) -> tuple[str, CodeKind]:
    """Compiled code of a guest, once for all tests of this process."""
    kind, code = compile_binary(binary.read_bytes())
    path = Path(tempfile.mkdtemp(prefix="lowcloud-code-")) / f"{binary.stem}.cwasm"
    path.write_bytes(code)
    return str(path), kind


class Guest:
    """One guest; a context manager that kills it at the end."""

    def __init__(
        self,
        binary: Path,
        *args: str,
        name: str = "guest",
        env: dict[str, str] | None = None,
        directories: Sequence[tuple[Path, str, bool]] = (),
        memory_bytes: int = 64 << 20,
    ) -> None:
        code_path, kind = compiled(binary)
        program = {
            "args": [name, *args],
            "env": env or {},
            "directories": [(str(host), guest, writable) for host, guest, writable in directories],
            "memory_bytes": memory_bytes,
        }
        command = [sys.executable, "-m", "tests.examples.run_guest", code_path, kind, json.dumps(program)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.output = bytearray()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := os.read(self.process.stdout.fileno(), 65536):
            with self._changed:
                self.output += chunk
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_output(self, text: str) -> str:
        """Everything printed so far, once it holds `text`."""
        end_s = time.monotonic() + DEADLINE_S
        with self._changed:
            while text.encode() not in self.output:
                left_s = end_s - time.monotonic()
                ended = not self._reader.is_alive()
                assert left_s > 0 and not ended, f"{text!r} is not in the output:\n{self.output.decode()}"
                self._changed.wait(min(left_s, 0.2))
            return self.output.decode()

    def wait_exit(self) -> int:
        """Its exit status; afterwards `output` is complete."""
        status = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return status

    def text(self) -> str:
        return self.output.decode()

    def kill(self) -> None:
        self.process.kill()
        self.wait_exit()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


def run(
    binary: Path, *args: str, env: dict[str, str] | None = None, directories: Sequence[tuple[Path, str, bool]] = ()
) -> tuple[int, str]:
    """Run a guest to its end: its exit status and all it printed."""
    with Guest(binary, *args, env=env, directories=directories) as guest:
        status = guest.wait_exit()
        return status, guest.text()


@contextlib.contextmanager
def connected(port: int, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection((address, port), timeout=DEADLINE_S) as connection:
        yield connection


def receive_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the stream. A reset raises ConnectionResetError."""
    received = bytearray()
    while chunk := connection.recv(65536):
        received += chunk
    return bytes(received)
