"""One call of a delta library, ours or a peer's, in a process of its own and measured from inside.

    python -m benchmarks.libraries LIBRARY encode BASE TARGET PATCH
    python -m benchmarks.libraries LIBRARY decode BASE PATCH TARGET

Writes the result to the last file and one JSON object to standard output: `cpu_s`, CPU time (all threads) of the call;
`start_s`, CPU time of loading the library, once per process (our kernel's compiling is in it); `start_bytes` and
`peak_bytes`, the process's peak memory (VmHWM) before the inputs are read and at the end.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DECODES = 3
"""Decoding is short, so the median of a few is taken; encoding is measured once."""


@dataclass(frozen=True)
class Library:
    encode: Callable[[bytes, bytes], bytes]
    decode: Callable[[bytes, bytes], bytes]


def lowcloud(effort: Any) -> Library:
    import delta

    def encode(base: bytes, target: bytes) -> bytes:
        return delta.encode(base, target, effort=effort)

    def decode(base: bytes, patch: bytes) -> bytes:
        return delta.decode(base, patch, max_size=delta.MAX_INPUT_BYTES)

    old = bytes(range(256)) * 64
    decode(old, delta.encode(old, old[1000:] + old[:1000]))  # loads the engine and the kernel
    return Library(encode, decode)


def bsdiff4() -> Library:
    import bsdiff4

    return Library(bsdiff4.diff, bsdiff4.patch)


def hdiffpatch(compressor: Any) -> Library:
    import hdiffpatch

    configurations = {"zstd": hdiffpatch.ZStdConfig(level=22), "lzma2": hdiffpatch.Lzma2Config(level=9)}
    configuration = configurations[compressor]
    return Library(lambda base, target: hdiffpatch.diff(base, target, configuration, validate=False), hdiffpatch.apply)


LIBRARIES: dict[str, Callable[[], Library]] = {
    "lowcloud": lambda: lowcloud("normal"),
    "lowcloud-fast": lambda: lowcloud("fast"),
    "lowcloud-best": lambda: lowcloud("best"),
    "bsdiff4": bsdiff4,
    "hdiffpatch-zstd": lambda: hdiffpatch("zstd"),
    "hdiffpatch-lzma2": lambda: hdiffpatch("lzma2"),
}


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    name, act, *paths = sys.argv[1:]
    library = LIBRARIES[name]()
    call, runs = (library.encode, 1) if act == "encode" else (library.decode, DECODES)
    start_s, start_bytes = time.process_time(), peak_bytes()
    inputs = [Path(path).read_bytes() for path in paths[:2]]
    times, result = [], b""
    for _ in range(runs):
        result = b""  # the one before is no part of the peak
        begun = time.process_time()
        result = call(*inputs)
        times.append(time.process_time() - begun)
    peak = peak_bytes()
    Path(paths[2]).write_bytes(result)
    print(
        json.dumps(
            {"cpu_s": statistics.median(times), "start_s": start_s, "start_bytes": start_bytes, "peak_bytes": peak}
        )
    )


if __name__ == "__main__":
    main()
