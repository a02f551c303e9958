"""The WebAssembly engine: the one module that imports wasmtime.

Who uses it: the compiler process (`compile_binary`), the zygote (`Engine`, loaded once, then forked with every guest)
and whoever needs the `fingerprint`. An `Engine` must be made in a single-threaded process that will fork, so nothing
here starts a thread before `Prepared.run`; only `compile_binary` does, and `check_sockets`, which is run in a child of
its own.

**Sockets.** Since wasmtime 48 its C interface cannot switch TCP and UDP on: `wasi_config_inherit_network` sets the
address check and the name lookup, and leaves two flags beside the latter off. The three flags are adjacent bytes;
`_allow_sockets` finds the first by toggling it through the interface and sets its neighbours. That is a guess about
memory, so it is guarded twice: it refuses a layout that does not look as expected, and `check_sockets` opens a socket
with a tiny component under each combination of flags before a host accepts any guest.

**The limit of memory.** The C interface sets it, but only from inside; `Prepared.limit_address` is where the store
keeps it, so that the supervisor can raise it while the program runs (`agent.supervisor.resizing`). It is found by
setting a number that occurs nowhere else, and used only where `check_memory_limit` has seen that what is written there
governs every memory of every instance.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import wasmtime
import wasmtime.component
from wasmtime import _bindings

from agent.sandbox import linux
from agent.sandbox.socket_component import socket_component

CodeKind = Literal["core", "component"]
Code = wasmtime.Module | wasmtime.component.Component
"""Loaded code."""

EXIT_TRAP: Final = 134
"""Exit code of a guest that trapped: what a native program that aborts has."""
EXIT_NOT_STARTED: Final = 126
"""Exit code of a guest that could not be instantiated."""
MAX_REASON_BYTES: Final = 4096

MAX_TABLE_ELEMENTS: Final = 10_000_000
"""Host memory of tables (8 bytes each) is not counted as linear memory, so it has a limit of its own."""
MAX_INSTANCES: Final = 1000

_WASI_CONFIG_BYTES: Final = 0x110
"""How much of the configuration's memory is looked at: within its allocation in wasmtime 50.0.1."""
_STORE_WORDS: Final = 16
"""The same of a store, in words of 8 bytes."""
_NO_LIMIT_MARK: Final = 0x5A17_C0DE_0000_0000
PAGE_BYTES: Final = 65536

_MAGIC: Final = b"\0asm"
_RUN_PREFIX: Final = "wasi:cli/run@0.2."
_OFFERED_PACKAGES: Final = tuple(f"wasi:{p}/" for p in ("cli", "clocks", "filesystem", "io", "random", "sockets"))
_OFFERED_HTTP: Final = ("wasi:http/types@0.2.", "wasi:http/outgoing-handler@0.2.")
_PREVIEW_1: Final = ("wasi_snapshot_preview1", "wasi_unstable")


class EngineError(Exception):
    """Base of what goes wrong with the engine or a binary."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class BinaryInvalid(EngineError):
    """A blob that is no WebAssembly program this host can run."""


class CodeUnusable(EngineError):
    hint = "remove it: it is compiled again from the binary"


class EngineUnfit(EngineError):
    hint = "install exactly the wasmtime that lowcloud pins (`pip install --force-reinstall lowcloud`)"


class Directory(NamedTuple):
    """A host directory under the path by which the guest sees it."""

    host_path: str
    guest_path: str
    writable: bool


class Program(NamedTuple):
    """What a guest is started with."""

    args: tuple[str, ...]
    """With the program's own name first."""
    env: dict[str, str]
    directories: tuple[Directory, ...]
    memory_bytes: int
    """Limit of each linear memory."""
    tcp: bool
    udp: bool


class Ended(NamedTuple):
    """How a guest's program came to an end by itself."""

    exit_code: int
    reason: str = ""
    """For a trap: what the engine said, with a backtrace."""


def _config() -> wasmtime.Config:
    """The one configuration of the whole host: compiled code fits no other. Everything else keeps its default."""
    config = wasmtime.Config()
    config.cranelift_opt_level = "speed"
    config.wasm_exceptions = True
    return config


_CONFIG_TEXT: Final = "opt=speed exceptions"
"""Names the choices of `_config` in the fingerprint: change both together."""


@functools.cache
def fingerprint() -> str:
    """Names everything that compiled code depends on: engine version, configuration, platform, CPU features."""
    version = importlib.metadata.version("wasmtime")
    machine = linux.machine()
    facts = f"{_CONFIG_TEXT}\n{_cpu_features(Path('/proc/cpuinfo').read_text(errors='replace'))}"
    return f"wasmtime-{version}-{machine}-linux-{hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()}"


def _cpu_features(cpuinfo: str) -> str:
    """The feature lists of all CPUs of `/proc/cpuinfo`, each once, in a stable order."""
    lists = (line.partition(":")[2] for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    return "\n".join(sorted({" ".join(sorted(features.split())) for features in lists}))


def kind_of(binary: bytes) -> CodeKind:
    """Core module or component, by the layer field of the header (bytes 6 and 7). Raises BinaryInvalid."""
    if binary[:4] != _MAGIC or len(binary) < 8:
        raise BinaryInvalid("this is not WebAssembly (it does not begin with \\0asm)", hint="push a .wasm file")
    layer = int.from_bytes(binary[6:8], "little")
    if layer > 1:
        raise BinaryInvalid(f"unknown WebAssembly layer {layer}; this host knows core modules (0) and components (1)")
    return "component" if layer == 1 else "core"


def compile_binary(binary: bytes) -> tuple[CodeKind, bytes]:
    """Compile a program for this host's engine. Starts threads and takes seconds for large programs, so it belongs in a
    process of its own. Raises BinaryInvalid for what does not compile, is no command, or imports what is not
    offered."""
    kind = kind_of(binary)
    engine = wasmtime.Engine(_config())
    try:
        if kind == "component":
            component = wasmtime.component.Component(engine, binary)
            _check_component(component, engine)
            return kind, bytes(component.serialize())
        module = wasmtime.Module(engine, binary)
        _check_module(module)
        return kind, bytes(module.serialize())
    except wasmtime.WasmtimeError as error:
        raise BinaryInvalid(f"it does not compile: {_first_lines(error)}") from error


def _check_component(component: wasmtime.component.Component, engine: wasmtime.Engine) -> None:
    kind = component.type
    unknown = [name for name in kind.imports(engine) if not _is_offered(name)]
    if unknown:
        raise BinaryInvalid(
            f"it imports what this host does not offer: {', '.join(unknown[:8])}",
            hint="offered is WASI 0.2: cli, clocks, filesystem, io, random, sockets, http/types, http/outgoing-handler",
        )
    if not any(name.startswith(_RUN_PREFIX) for name in kind.exports(engine)):
        raise BinaryInvalid("it does not export wasi:cli/run 0.2, so it is no program", hint="build it as a command")


def _is_offered(name: str) -> bool:
    return (name.startswith(_OFFERED_PACKAGES) and "@0.2." in name) or name.startswith(_OFFERED_HTTP)


def _check_module(module: wasmtime.Module) -> None:
    unknown = sorted({i.module for i in module.imports if i.module not in _PREVIEW_1})
    if unknown:
        raise BinaryInvalid(
            f"it imports what this host does not offer: {', '.join(unknown[:8])}",
            hint="a core module may import WASI preview 1 (wasi_snapshot_preview1) only",
        )
    if not any(e.name == "_start" and isinstance(e.type, wasmtime.FuncType) for e in module.exports):
        raise BinaryInvalid("it does not export _start, so it is no program", hint="build it as a command")


class Engine:
    """Engine and linkers, loaded once in a process that forks guests. `resizable`: what `check_memory_limit` said."""

    def __init__(self, *, resizable: bool = False) -> None:
        self._resizable = resizable
        self._engine = wasmtime.Engine(_config())
        self._core_linker = wasmtime.Linker(self._engine)
        self._core_linker.define_wasi()
        self._component_linker = wasmtime.component.Linker(self._engine)
        self._component_linker.add_wasip2()
        self._component_linker.add_wasi_http()

    def load(self, code_path: str, kind: CodeKind) -> Code:
        """Load compiled code, which must come from this host's own compiler: loading it is trusting it. Starts no
        thread. Raises CodeUnusable."""
        try:
            if kind == "component":
                return wasmtime.component.Component.deserialize_file(self._engine, code_path)
            return wasmtime.Module.deserialize_file(self._engine, code_path)
        except wasmtime.WasmtimeError as error:
            raise CodeUnusable(f"compiled code {code_path} cannot be loaded: {_first_lines(error)}") from error

    def prepare(self, code: Code, program: Program) -> Prepared:
        """Open the directories, and do everything else that the sandbox will forbid. Starts no thread. Raises
        EngineUnfit, or EngineError for a directory that cannot be opened."""
        store = wasmtime.Store(self._engine)
        address = _limit_memory(store, program.memory_bytes)
        limit_address = address if self._resizable else None
        store.set_wasi(_wasi_config(program))
        if isinstance(code, wasmtime.Module):
            return Prepared(functools.partial(self._start_module, store, code), limit_address)
        store.set_wasi_http()
        return Prepared(functools.partial(self._start_component, store, code), limit_address)

    def warm_up(self, component: bytes) -> None:
        """Go once through what every guest will do, short of running, so that a fork of this process finds it done
        (what is loaded lazily, what is cached). `component` is what `check_sockets` gave. Starts no thread."""
        with contextlib.suppress(CodeUnusable):
            code = wasmtime.component.Component.deserialize(self._engine, component)
            self.prepare(code, Program(("warm-up",), {"A": "B"}, (), 1 << 20, True, True)).instantiate()

    def _start_component(self, store: wasmtime.Store, component: wasmtime.component.Component) -> Callable[[], int]:
        name = next((n for n in component.type.exports(self._engine) if n.startswith(_RUN_PREFIX)), None)
        instance = self._component_linker.instantiate(store, component)
        interface = instance.get_export_index(store, name) if name else None
        index = instance.get_export_index(store, "run", interface) if interface else None
        run = instance.get_func(store, index) if index else None
        if run is None:
            raise CodeUnusable("the component does not export wasi:cli/run")
        return lambda: int(getattr(run(store), "tag", "ok") == "err")

    def _start_module(self, store: wasmtime.Store, module: wasmtime.Module) -> Callable[[], int]:
        start = self._core_linker.instantiate(store, module).exports(store).get("_start")
        if not isinstance(start, wasmtime.Func):
            raise CodeUnusable("the module does not export _start")

        def run() -> int:
            start(store)
            return 0

        return run


class Prepared:
    """A program with its code loaded, about to run. `limit_address`: where its limit of memory is, 8 bytes; None where
    that may not be written to."""

    def __init__(self, instantiate: Callable[[], Callable[[], int]], limit_address: int | None = None) -> None:
        self.instantiate = instantiate
        self.limit_address = limit_address

    def run(self, on_running: Callable[[], None]) -> Ended:
        """Instantiate, say so through `on_running`, and run to the end. Never raises for what the guest does."""
        try:
            run = self.instantiate()
        except wasmtime.ExitTrap as exit_:
            return Ended(exit_.code)
        except (wasmtime.WasmtimeError, wasmtime.Trap, CodeUnusable) as error:
            return Ended(EXIT_NOT_STARTED, f"it could not be instantiated: {_first_lines(error)}")
        on_running()
        try:
            return Ended(run())
        except wasmtime.ExitTrap as exit_:
            return Ended(exit_.code)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return Ended(EXIT_TRAP, _first_lines(error))


def _first_lines(error: Exception) -> str:
    return str(error).encode()[:MAX_REASON_BYTES].decode(errors="ignore").strip()


def _wasi_config(program: Program) -> wasmtime.WasiConfig:
    config = wasmtime.WasiConfig()
    config.argv = list(program.args)
    config.env = list(program.env.items())
    config.inherit_stdout()
    config.inherit_stderr()
    for directory in program.directories:
        try:
            config.preopen_dir(directory.host_path, directory.guest_path, directory.writable)
        except wasmtime.WasmtimeError as error:
            raise EngineError(
                f"directory {directory.host_path} (the guest's {directory.guest_path}) cannot be opened: {error}",
                hint="it must exist and be readable by the user the guest runs as",
            ) from error
    if program.tcp or program.udp:
        _allow_sockets(config, tcp=program.tcp, udp=program.udp)
    return config


def _allow_sockets(config: wasmtime.WasiConfig, *, tcp: bool, udp: bool) -> None:
    """Switch sockets on, and name lookup off (see the module's head). Raises EngineUnfit."""
    pointer: Any = config.ptr()
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    if address is None:
        raise EngineUnfit("the engine's WASI configuration is gone")
    _bindings.wasi_config_inherit_network(pointer)
    _bindings.wasi_config_allow_ip_name_lookup(pointer, True)
    with_lookup = ctypes.string_at(address, _WASI_CONFIG_BYTES)
    _bindings.wasi_config_allow_ip_name_lookup(pointer, False)
    without = ctypes.string_at(address, _WASI_CONFIG_BYTES)
    differing = [i for i, (a, b) in enumerate(zip(with_lookup, without, strict=True)) if a != b]
    if len(differing) != 1 or without[differing[0] : differing[0] + 3] != bytes(3):
        raise EngineUnfit(f"this wasmtime keeps its network flags in an unknown place ({differing})")
    ctypes.memset(address + differing[0] + 1, int(udp), 1)
    ctypes.memset(address + differing[0] + 2, int(tcp), 1)


def _limit_memory(store: wasmtime.Store, memory_bytes: int) -> int | None:
    """Limit each linear memory of a store; where that number lies, or None where it is not found."""

    def limit(memory_size: int) -> None:
        store.set_limits(memory_size=memory_size, table_elements=MAX_TABLE_ELEMENTS, instances=MAX_INSTANCES)

    pointer: Any = _bindings.wasmtime_store_context(store.ptr())
    context = ctypes.cast(pointer, ctypes.c_void_p).value
    limit(_NO_LIMIT_MARK)
    words = list((ctypes.c_uint64 * _STORE_WORDS).from_address(context)) if context else []
    limit(memory_bytes)
    if context is None or words.count(_NO_LIMIT_MARK) != 1:
        return None
    address = context + 8 * words.index(_NO_LIMIT_MARK)
    return address if ctypes.c_uint64.from_address(address).value == memory_bytes else None


def check_memory_limit() -> bool:
    """Does what is written at `_limit_memory`'s address decide how far every memory of every instance grows? Compiles
    (so it starts threads): run it in a process of its own."""
    engine = wasmtime.Engine(_config())
    store = wasmtime.Store(engine)
    address = _limit_memory(store, 2 * PAGE_BYTES)
    if address is None:
        return False
    module = wasmtime.Module(engine, bytes(wasmtime.wat2wasm(_TWO_MEMORIES)))
    instances = [wasmtime.Instance(store, module, []) for _ in range(2)]
    grow = [instance.exports(store)[name] for instance in instances for name in ("grow-0", "grow-1")]
    if not all(isinstance(one, wasmtime.Func) for one in grow):
        return False
    pages = 1
    for most, expected in ((2, 2), (5, 5), (3, 5)):
        ctypes.c_uint64.from_address(address).value = most * PAGE_BYTES
        if any(one(store, expected - pages) != pages or one(store, 1) != -1 for one in grow):  # type: ignore[operator] # a Func
            return False
        pages = expected
    return True


_TWO_MEMORIES: Final = """(module (memory 1) (memory 1)
    (func (export "grow-0") (param i32) (result i32) (memory.grow 0 (local.get 0)))
    (func (export "grow-1") (param i32) (result i32) (memory.grow 1 (local.get 0))))"""


def check_sockets() -> bytes:
    """Open a TCP and a UDP socket from a component, under each combination of flags, and see that exactly what is
    allowed works. Compiles (so it starts threads): run it in a process of its own. Gives the compiled component, for
    `Engine.warm_up`. Raises EngineUnfit."""
    engine = wasmtime.Engine(_config())
    linker = wasmtime.component.Linker(engine)
    linker.add_wasip2()
    compiled = b""
    for protocol in ("tcp", "udp"):
        component = wasmtime.component.Component(engine, bytes(wasmtime.wat2wasm(socket_component(protocol))))
        compiled = bytes(component.serialize())
        for tcp, udp in ((False, False), (True, False), (False, True), (True, True)):
            program = Program(("check",), {}, (), 1 << 20, tcp, udp)
            store = wasmtime.Store(engine)
            store.set_wasi(_wasi_config(program))
            run = linker.instantiate(store, component).get_func(store, "run")
            opened = run is not None and run(store) == 0
            if opened != (tcp if protocol == "tcp" else udp):
                state = "opens" if opened else "does not open"
                raise EngineUnfit(
                    f"this wasmtime {state} a {protocol} socket where tcp={tcp} and udp={udp} are allowed"
                )
    return compiled
