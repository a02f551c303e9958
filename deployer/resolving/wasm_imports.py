"""What a WASM binary is and what it asks for, read from its outermost sections alone.

A definition that grants no network to a program that opens sockets is better found before anything is deployed. For
that the deployer needs names, not an engine: this reader takes the binary in pieces while it streams into the store,
keeps only the import and export sections, and skips everything else.

Formats: core modules, https://webassembly.github.io/spec/core/binary/modules.html; components, `design/mvp/Binary.md`
of https://github.com/WebAssembly/component-model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

MAX_SECTION_BYTES = 16 << 20
"""An import or export section larger than this is not a program's."""

CORE_PREAMBLE: Final = b"\x00asm\x01\x00\x00\x00"
COMPONENT_PREAMBLE: Final = b"\x00asm\x0d\x00\x01\x00"

Kind = Literal["core", "component"]

_IMPORTS: dict[Kind, int] = {"core": 2, "component": 10}
_EXPORTS: dict[Kind, int] = {"core": 7, "component": 11}
_MAX_HEADER_BYTES = 6


class NotWasm(ValueError):
    """Bytes that are no WASM binary, or a damaged one. The message says why, `hint` what to do where it is clear."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Facts(NamedTuple):
    """What a binary is."""

    kind: Kind
    imports: tuple[str, ...]
    """Sorted: the interfaces of a component (`wasi:sockets/tcp@0.2.0`), the modules of a core module
    (`wasi_snapshot_preview1`)."""
    exports: tuple[str, ...]
    """Sorted names."""


class FactsReader:
    """Feed it a binary from its first to its last byte, then ask `facts`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0
        self._wanted: tuple[int, int] | None = None
        """Identifier and size of the section that is being collected."""
        self._kind: Kind | None = None
        self._imports: set[str] = set()
        self._exports: set[str] = set()

    def feed(self, chunk: bytes | memoryview) -> None:
        """Raises NotWasm."""
        view = memoryview(chunk)
        while view:
            if self._skip:
                skipped = min(self._skip, len(view))
                self._skip -= skipped
                view = view[skipped:]
                continue
            taken = min(self._lacking(), len(view))
            self._buffer += view[:taken]
            view = view[taken:]
            self._advance()

    def facts(self) -> Facts:
        """Raises NotWasm where the binary ended too early."""
        if self._kind is None:
            raise _not_wasm(bytes(self._buffer))
        if self._buffer or self._skip or self._wanted:
            raise NotWasm("it ends in the middle of a section", hint="it is cut off; build or copy it again")
        return Facts(self._kind, tuple(sorted(self._imports)), tuple(sorted(self._exports)))

    def _lacking(self) -> int:
        """How many more bytes may be taken into the buffer now."""
        if self._kind is None:
            return len(CORE_PREAMBLE) - len(self._buffer)
        if self._wanted is not None:
            return self._wanted[1] - len(self._buffer)
        return 1

    def _advance(self) -> None:
        if self._kind is None:
            if len(self._buffer) == len(CORE_PREAMBLE):
                self._kind = _kind(bytes(self._buffer))
                self._buffer.clear()
        elif self._wanted is not None:
            if len(self._buffer) == self._wanted[1]:
                self._section(self._wanted[0], bytes(self._buffer))
                self._wanted = None
                self._buffer.clear()
        elif len(self._buffer) > 1 and not self._buffer[-1] & 0x80:
            self._header(self._kind)
        elif len(self._buffer) >= _MAX_HEADER_BYTES:
            raise NotWasm("a section's size is not a number")

    def _header(self, kind: Kind) -> None:
        section = self._buffer[0]
        size = _Bytes(bytes(self._buffer[1:])).number()
        self._buffer.clear()
        if section not in (_IMPORTS[kind], _EXPORTS[kind]):
            self._skip = size
        elif size > MAX_SECTION_BYTES:
            raise NotWasm(f"its section {section} has {size} bytes; at most {MAX_SECTION_BYTES} are read")
        elif size:
            self._wanted = (section, size)

    def _section(self, section: int, data: bytes) -> None:
        assert self._kind is not None
        importing = section == _IMPORTS[self._kind]
        reader = _core_names if self._kind == "core" else _component_names
        (self._imports if importing else self._exports).update(reader(_Bytes(data), importing))


def facts_of(chunks: Iterable[bytes]) -> Facts:
    """What the binary in these pieces is. Raises NotWasm."""
    reader = FactsReader()
    for chunk in chunks:
        reader.feed(chunk)
    return reader.facts()


class _Bytes:
    """A section's contents, read from front to back. Everything raises NotWasm at the end of the section."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise NotWasm("a section ends in the middle of an entry")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """An unsigned 32-bit number in LEB128."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if value >> 32:
                    break
                return value
        raise NotWasm("a number is too large")

    def skip_signed(self) -> None:
        """A signed number of up to 64 bits in LEB128."""
        for _ in range(10):
            if not self.byte() & 0x80:
                return
        raise NotWasm("a number is too large")

    def name(self) -> str:
        size = self.number()
        raw = self.data[self.at : self.at + size]
        if len(raw) < size:
            raise NotWasm("a section ends in the middle of a name")
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise NotWasm("a name is not UTF-8") from None


class _Unfamiliar(Exception):
    """An entry of a kind that is newer than this reader. What is known of the binary then is incomplete; whether it can
    run is for a host's engine to say."""


def _core_names(data: _Bytes, importing: bool) -> set[str]:
    names = set()
    try:
        for _ in range(data.number()):
            names.add(data.name())
            if importing:
                data.name()
                _skip_core_type(data)
            else:
                data.byte()
                data.number()
    except _Unfamiliar:
        pass
    return names


def _skip_core_type(data: _Bytes) -> None:
    match data.byte():
        case 0x00:  # function
            data.number()
        case 0x01:  # table
            _skip_value_type(data)
            _skip_limits(data)
        case 0x02:  # memory
            _skip_limits(data)
        case 0x03:  # global
            _skip_value_type(data)
            data.byte()
        case 0x04:  # tag
            data.byte()
            data.number()
        case _:
            raise _Unfamiliar


def _skip_value_type(data: _Bytes) -> None:
    if data.byte() in (0x63, 0x64):  # a reference to a heap type
        data.skip_signed()


def _skip_limits(data: _Bytes) -> None:
    flags = data.byte()
    if flags & ~0x0F:
        raise _Unfamiliar
    data.skip_signed()
    if flags & 0x01:
        data.skip_signed()
    if flags & 0x08:
        data.number()


def _component_names(data: _Bytes, importing: bool) -> set[str]:
    names = set()
    try:
        for _ in range(data.number()):
            names.add(_extern_name(data))
            if importing:
                _skip_extern_type(data)
            else:
                if data.byte() == 0x00:  # something of a core module: one more byte says what
                    data.byte()
                data.number()
                if data.byte() == 0x01:
                    _skip_extern_type(data)
    except _Unfamiliar:
        pass
    return names


def _extern_name(data: _Bytes) -> str:
    form = data.byte()
    if form > 0x02:
        raise _Unfamiliar
    name = data.name()
    return name + (data.name() if form == 0x02 else "")


def _skip_extern_type(data: _Bytes) -> None:
    match data.byte():
        case 0x00:  # core module
            data.byte()
            data.number()
        case 0x01 | 0x04 | 0x05:  # function, component, instance
            data.number()
        case 0x02:  # value
            data.byte()
            data.skip_signed()
        case 0x03:  # type: equal to one, or a resource of its own
            if data.byte() == 0x00:
                data.number()
        case _:
            raise _Unfamiliar


def _kind(preamble: bytes) -> Kind:
    if preamble == CORE_PREAMBLE:
        return "core"
    if preamble == COMPONENT_PREAMBLE:
        return "component"
    raise _not_wasm(preamble)


def _not_wasm(start: bytes) -> NotWasm:
    if start.startswith(b"\x00asm") and len(start) == len(CORE_PREAMBLE):
        return NotWasm(f"it is WASM of the unknown version {start[4:].hex()}")
    if start.lstrip().startswith((b"(modu", b"(comp")):
        return NotWasm("it is WASM in its text format", hint="translate it: wasm-tools parse FILE -o FILE.wasm")
    if start.startswith(b"\x7fELF"):
        return NotWasm("it is a native program", hint="compile it for a wasm32-wasi target")
    if not start:
        return NotWasm("it is empty")
    return NotWasm("it does not begin as a WASM binary does")
