"""Runs the kernel: one fresh sandbox per call, with bounds on memory and time, thrown away afterwards.

The kernel is WASM without a single import, so the worst that hostile input can do in it is to fail: by a trap, by
asking for more memory than it may have, or by running out of time. Each is a DeltaError here. Every call has an engine
of its own, because a time limit ends everything that runs in its engine. The compiled code is kept for the life of the
process, and beyond it in the user's cache (kernel_cache.py): it takes 0.2 s to compile and under a millisecond to load.
Calls from any thread are independent.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import mmap
import platform
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from delta import kernel_cache
from delta.errors import DeltaError

if TYPE_CHECKING:
    import wasmtime

KERNEL = Path(__file__).parent / "kernel" / "delta.wasm"

PAGE_BYTES = 1 << 16
MAX_MEMORY_BYTES = (1 << 32) - PAGE_BYTES
LARGE_PAGES_FROM_BYTES = 4 << 20
"""Smaller sandboxes have too little to gain."""

# Why the kernel gave up; in step with the enum in delta/kernel/base.h.
REASONS = {
    1: "it needs more memory than it may have",
    2: "a module is malformed or of a form that is not understood",
    3: "a stream ends early or holds an impossible value",
    4: "the output is not as long as announced",
}

_compiling = threading.Lock()


def available() -> bool:
    """Whether this installation carries the compiled kernel."""
    return KERNEL.is_file()


def _config() -> wasmtime.Config:
    import wasmtime

    config = wasmtime.Config()
    config.epoch_interruption = True
    config.cranelift_opt_level = "speed"
    return config


@cache
def _compile(kernel: Path) -> bytes:
    import wasmtime

    try:
        source = kernel.read_bytes()
        directory, key = kernel_cache.default_directory(), _key(source)
        if directory is not None and (known := kernel_cache.load(directory, key)) and _fits(known):
            return known
        code = bytes(wasmtime.Module(wasmtime.Engine(_config()), source).serialize())
    except (OSError, wasmtime.WasmtimeError) as error:
        raise DeltaError(
            f"the delta kernel {kernel} cannot be loaded: {error}",
            hint="reinstall lowcloud, or build it with `python -m delta.kernel.build`",
        ) from error
    if directory is not None:
        kernel_cache.store(directory, key, code)
    return code


def _key(source: bytes) -> str:
    """Names the kernel and the kind of machine. Of the rest the engine says itself whether it fits."""
    return f"{blake3(source).hexdigest()[:32]}-{platform.machine()}"


def _fits(code: bytes) -> bool:
    """Whether this engine takes the code."""
    import wasmtime

    try:
        wasmtime.Module.deserialize(wasmtime.Engine(_config()), code)
    except wasmtime.WasmtimeError:
        return False
    return True


def _compiled() -> bytes:
    with _compiling:
        return _compile(KERNEL)


def forget_compiled() -> None:
    """Load the kernel anew for the next call: for what changes where it comes from."""
    _compile.cache_clear()


class Sandbox:
    """One instance of the kernel. Use it for one call, from one thread."""

    def __init__(self, *, memory_bytes: int, time_s: float, likely_bytes: int = 0) -> None:
        """`likely_bytes`: how much of `memory_bytes` the call will probably use; it is reserved at once, which is
        quicker than piece by piece, and costs nothing where it is not used."""
        import wasmtime

        self._engine = wasmtime.Engine(_config())
        module = wasmtime.Module.deserialize(self._engine, _compiled())
        self._store = wasmtime.Store(self._engine)
        self._store.set_limits(memory_size=min(memory_bytes, MAX_MEMORY_BYTES))
        self._store.set_epoch_deadline(1)
        self._time_s = time_s
        self._late = False
        try:
            self._exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        except wasmtime.WasmtimeError as error:
            raise DeltaError(f"the delta kernel cannot start: {error}") from error
        self._reserve(min(likely_bytes, memory_bytes, MAX_MEMORY_BYTES))

    def _reserve(self, size: int) -> None:
        """Large pages are a tenth of the time of a decode: each page costs a trip into the operating system."""
        import wasmtime

        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        with contextlib.suppress(wasmtime.WasmtimeError):
            memory.grow(self._store, max(0, (size - memory.data_len(self._store)) // PAGE_BYTES))
        if size >= LARGE_PAGES_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            _advise(ctypes.addressof(memory.data_ptr(self._store).contents), memory.data_len(self._store))

    def call(self, name: str, *arguments: int) -> int:
        """Call an export that takes and returns unsigned 32-bit numbers. Raises DeltaError when it gives up, when it
        asks for too much memory, and when it is still running after `time_s`."""
        if self._time_s <= 0:
            self._stop()
        with _time_limit(max(self._time_s, 0), self._stop):
            return self._call(name, *arguments)

    def ask(self, name: str) -> int:
        """Call an export that only names a number."""
        return self._call(name)

    def _call(self, name: str, *arguments: int) -> int:
        import wasmtime

        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        try:
            return int(function(self._store, *(_signed(argument) for argument in arguments))) & 0xFFFFFFFF
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            raise DeltaError(f"the delta kernel gave up: {self._reason()}") from error

    def put(self, data: bytes) -> int:
        """Copy `data` into the sandbox; returns its address. 16 zero bytes follow it."""
        address = self._call("kernel_allocate", len(data) + 16)
        ctypes.memmove(self._at(address, len(data)), data, len(data))
        return address

    def get(self, address: int, size: int) -> bytes:
        """Copy bytes out of the sandbox. Raises DeltaError where they are not inside it."""
        return ctypes.string_at(self._at(address, size), size)

    def _at(self, address: int, size: int) -> int:
        import wasmtime

        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        if address + size > memory.data_len(self._store):
            raise DeltaError("the delta kernel named bytes that it does not have")
        return ctypes.addressof(memory.data_ptr(self._store).contents) + address

    def _stop(self) -> None:
        self._late = True
        self._engine.increment_epoch()

    def _reason(self) -> str:
        import wasmtime

        if self._late:
            return f"it was still running after {self._time_s:g} s"
        self._store.set_epoch_deadline(1)
        error = self._exports["kernel_error"]
        assert isinstance(error, wasmtime.Func)
        try:
            return REASONS.get(int(error(self._store)), "it failed")
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            return "it failed"


@contextlib.contextmanager
def _time_limit(time_s: float, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` from another thread if the body is not done after `time_s`. Unlike threading.Timer it does not wait
    for its thread to have begun, which on a busy machine takes as long as decoding a small file."""
    done = threading.Lock()

    def watch() -> None:
        if not done.acquire(timeout=time_s):
            stop()

    with done:
        _thread.start_new_thread(watch, ())
        yield


def _advise(address: int, size: int) -> None:
    """Ask for large pages; a system that has none goes on with small ones."""
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None:
        advise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
