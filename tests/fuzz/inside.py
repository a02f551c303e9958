"""Builds and runs the fuzzer of tests/fuzz/inside.c: by hand only, since it needs clang's libFuzzer.

Debian: `apt install clang-19 libclang-rt-19-dev llvm-19`. A crash is left as a file in the corpus directory's `crashes`
and libFuzzer's log says how to run it again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from delta.kernel import build as kernel_build
from delta.structured import COVER
from tests.fuzz.seeds import pairs, seeds

COMPILERS = ("clang-21", "clang-20", "clang-19", "clang-16", "clang-14", "clang")
STACK_KIB = 4096
LONGEST_INPUT_BYTES = 1 << 14
SLOWEST_CALL_S = 25
"""A call of the kernel on so small an input may take 20 s in the sandbox; natively with sanitizers it is far below."""

FLAGS = (
    "-std=gnu17",
    "-g",
    "-O1",
    "-fsanitize=fuzzer,address,undefined",
    # Nothing plus nothing, and copies of nothing from nowhere, are harmless on every target there is.
    "-fno-sanitize=pointer-overflow,nonnull-attribute",
    "-fno-sanitize-recover=undefined",
    "-fwrapv",
    "-fno-omit-frame-pointer",
    "-Wno-attributes",
    "-Wno-unknown-attributes",
    "-Wno-ignored-attributes",
    "-Wno-pointer-to-int-cast",
    "-Wno-int-to-pointer-cast",
)


def compile_fuzzer(out: Path) -> None:
    """Raises SystemExit where no compiler with libFuzzer is installed."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise SystemExit("no clang: apt install clang-19 libclang-rt-19-dev llvm-19")
    kernel = Path(kernel_build.__file__).parent
    sources = [str(kernel / f"{name}.c") for name in kernel_build.SOURCES]
    harness = str(Path(__file__).with_suffix(".c"))
    subprocess.run([compiler, *FLAGS, f"-I{kernel}", harness, *sources, "-o", str(out)], check=True)


def write_seeds(directory: Path) -> None:
    """Bases, and inputs in the harness's form: decodes of real streams, encodes of real modules both ways, and decodes
    that bring their base along."""
    bases, inputs = directory / "bases", directory / "inputs"
    for path in (bases, inputs, directory / "crashes"):
        path.mkdir(parents=True, exist_ok=True)
    base_number = {}
    for number, (base, target) in enumerate(pairs()):
        base_number[base] = number
        (bases / str(number)).write_bytes(base)
        for op in (2, 3, 4, 6):
            (inputs / f"seed-encode-{op}-{number}").write_bytes(bytes([op, number, 40, 0, 0]) + target)
    for number, seed in enumerate(seeds()):
        size = len(seed.target).to_bytes(3, "little")
        op = 1 if seed.method is COVER else 0
        if seed.base in base_number:
            head = bytes([op, base_number[seed.base]]) + size
            (inputs / f"seed-decode-{number}").write_bytes(head + seed.streams)
            coded = bytes([5, base_number[seed.base]]) + seed.text_bytes.to_bytes(3, "little") + seed.coded
            (inputs / f"seed-text-{number}").write_bytes(coded)
        own = bytes([op, 255]) + size + len(seed.base).to_bytes(2, "little") + seed.base
        if len(own) + len(seed.streams) <= LONGEST_INPUT_BYTES:
            (inputs / f"seed-own-base-{number}").write_bytes(own + seed.streams)


def run(directory: Path, seconds: int, *, one_input: Path | None = None) -> int:
    """Fuzz in `directory` (inputs found earlier are used again); returns libFuzzer's exit code."""
    directory.mkdir(parents=True, exist_ok=True)
    fuzzer = directory / "fuzzer"
    compile_fuzzer(fuzzer)
    write_seeds(directory)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        f"-timeout={SLOWEST_CALL_S}",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        f"-artifact_prefix={directory / 'crashes'}/",
        str(one_input or directory / "inputs"),
    ]
    environment = os.environ | {
        "FUZZ_BASES": str(directory / "bases"),
        "ASAN_OPTIONS": "detect_leaks=0:handle_abort=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    limited = f'ulimit -s {STACK_KIB}; exec "$0" "$@"'  # the sandbox's stack has 1 MiB, without a sanitizer's frames
    return subprocess.run(["bash", "-c", limited, str(fuzzer), *options], env=environment, check=False).returncode
