"""The engine: what it accepts, what compiled code depends on, and that its sockets are on exactly where they are to
be."""

from __future__ import annotations

import multiprocessing

import pytest

from agent.sandbox import engine
from agent.sandbox.engine import BinaryInvalid, CodeUnusable, Engine, EngineError, EngineUnfit, Program
from tests.agent.runtime.support import code_of

EMPTY_MODULE = b"\0asm\x01\0\0\0"
EMPTY_COMPONENT = b"\0asm\x0d\0\x01\0"
IMPORTS_ENV = bytes.fromhex("01040160000002090103656e7601610000")
"""A type section with `() -> ()`, and an import section with `env.a` of that type."""
NOTHING = Program(("nothing",), {}, (), 1 << 20, False, False)


@pytest.mark.parametrize(
    ("binary", "reason"),
    [
        (b"", "not WebAssembly"),
        (b"#!/bin/sh\n", "not WebAssembly"),
        (b"\0asm\x01\0\x07\0", "unknown WebAssembly layer 7"),
        (EMPTY_MODULE, "does not export _start"),
        (EMPTY_COMPONENT, "does not export wasi:cli/run"),
        (EMPTY_MODULE + b"\xff\xff\xff", "does not compile"),
        (EMPTY_MODULE + IMPORTS_ENV, "does not offer: env"),
    ],
)
def test_a_binary_that_cannot_run_here_is_refused_with_the_reason(binary: bytes, reason: str) -> None:
    with pytest.raises(BinaryInvalid, match=reason):
        engine.compile_binary(binary)


def test_the_kind_is_told_by_the_header() -> None:
    assert engine.kind_of(EMPTY_MODULE) == "core"
    assert engine.kind_of(EMPTY_COMPONENT) == "component"


def test_the_fingerprint_names_version_platform_and_cpu() -> None:
    assert engine.fingerprint().startswith("wasmtime-50.0.1-")
    assert engine.fingerprint() == engine.fingerprint()
    features = "flags\t\t: b a\nflags\t\t: a b\nmodel name\t: x\n"
    assert engine._cpu_features(features) == "a b"
    assert engine._cpu_features(features) != engine._cpu_features("flags : a\n")


def test_code_of_another_kind_or_none_is_not_loaded(tmp_path: object) -> None:
    path, kind = code_of("core")
    assert kind == "core"
    with pytest.raises(CodeUnusable, match="cannot be loaded"):
        Engine().load(str(path), "component")
    with pytest.raises(CodeUnusable):
        Engine().load(f"{tmp_path}/absent", "core")


def test_a_directory_that_is_not_there_is_named() -> None:
    loaded = Engine()
    path, kind = code_of("core")
    program = NOTHING._replace(directories=(engine.Directory("/nonexistent/place", "/data", True),))
    with pytest.raises(EngineError, match="/nonexistent/place"):
        loaded.prepare(loaded.load(str(path), kind), program)


def test_sockets_are_on_exactly_where_they_are_allowed() -> None:
    assert _in_a_process(_check_sockets) == 0


def test_a_layout_that_is_not_as_expected_is_refused() -> None:
    assert _in_a_process(_check_sockets_with_another_layout) == 0


def _in_a_process(target: object) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=target)  # type: ignore[arg-type]
    process.start()
    process.join(120)
    return process.exitcode


def _check_sockets() -> None:
    engine.check_sockets()


def _check_sockets_with_another_layout() -> None:
    # Looking at too little memory is what a moved field looks like.
    setattr(engine, "_WASI_CONFIG_BYTES", 64)  # noqa: B010 - it is Final for everybody else
    with pytest.raises(EngineUnfit, match="unknown place"):
        engine.check_sockets()
