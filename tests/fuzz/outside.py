"""A coverage-guided fuzzer over `delta.decode` and `delta.inspect`: what a hostile peer can send.

The kernel runs in its real sandbox, compiled with a counter at every edge (coverage.c). An input is kept and mutated
further where it makes the kernel take an edge, or take one a new order of magnitude of times, or `decode` say something
that it has not said before. Mutation knows the format, or nothing would get past the checks of sizes and digests: it
changes single streams, sizes, the base, and only sometimes the packed bytes.

What must hold for every input: a DeltaError or bytes that the header's digest names; never more bytes than the caller
accepts, never more memory in the sandbox than it was given.
"""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch as replaced

import wasmtime

import delta
from delta import DeltaError, kernel_host, last_stage, structured
from delta.container import HEADER_BYTES, Codec, digest, pack
from delta.kernel import build as kernel_build
from tests.delta.modules import uleb
from tests.fuzz.seeds import Seed, seeds

SLACK_BYTES = 1 << 16
"""The caller accepts this much more than the seed's target has."""

ORDERS = bytes(0 if n == 0 else 1 << min(n.bit_length() - 1, 7) for n in range(256))
"""Hits of an edge -> one bit for their order of magnitude."""

STREAMS = {Codec.WASM: 35, Codec.COVER: 4}
"""How many the kernel makes: `enum stream` and `enum cover_stream` in its sources."""

TELLING_NUMBERS = (0, 1, 2, 63, 64, 127, 128, 1 << 14, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 64) - 1)


def build_kernel(directory: Path) -> Path:
    """The kernel with counters. Raises subprocess.CalledProcessError."""
    here, out = Path(kernel_build.__file__).parent, directory / kernel_build.NAME
    flags = [flag for flag in kernel_build.FLAGS if flag != "-flto"] + [
        "-fsanitize-coverage=trace-pc-guard",
        f"-I{here}",
    ]
    sources = [*(here / f"{name}.c" for name in kernel_build.SOURCES), Path(__file__).with_name("coverage.c")]
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags, *sources, "-o", str(out)], check=True)
    return out


class Watched(kernel_host.Sandbox):
    """A sandbox that says afterwards what was executed in it and whether it kept to its memory."""

    executed = b""

    def __init__(self, *, memory_bytes: int, time_s: float, likely_bytes: int = 0) -> None:
        self._memory_bytes = memory_bytes
        super().__init__(memory_bytes=memory_bytes, time_s=time_s, likely_bytes=likely_bytes)

    def call(self, name: str, *arguments: int) -> int:
        try:
            return super().call(name, *arguments)
        finally:
            self._store.set_epoch_deadline(1 << 20)  # also where the call was ended for its time
            memory = self._exports["memory"]
            assert isinstance(memory, wasmtime.Memory)
            assert memory.data_len(self._store) <= self._memory_bytes, "the sandbox outgrew its memory"
            Watched.executed = self.get(self.ask("coverage_at"), self.ask("coverage_bytes"))


@contextmanager
def watched_kernel() -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory() as directory,
        replaced.object(kernel_host, "KERNEL", build_kernel(Path(directory))),
        replaced.object(kernel_host, "Sandbox", Watched),
    ):
        yield


@dataclass(frozen=True)
class Input:
    base: bytes
    codec: Codec
    target: bytes
    """Digest in the header."""
    size: int
    streams: tuple[bytes, ...]
    text_at: int
    coded: bytes | None = None
    """In place of the streams that are text: what the kernel's coder unpacks."""
    damage: Callable[[bytes], bytes] = bytes
    """What is done to the packed patch."""

    def patch(self) -> bytes:
        row = b"".join(uleb(len(stream)) for stream in self.streams) + b"".join(self.streams)
        text_at = min(self.text_at, len(row))
        payload = last_stage.pack(self.base, row, text_at, effort="fast", text_level=1, coded_text=self.coded)
        return self.damage(pack(self.codec, digest(self.base), self.target, self.size, payload))


def split(row: bytes, count: int) -> tuple[bytes, ...]:
    """A row of `count` streams as the kernel makes it: first all sizes, then all bytes."""
    sizes, at = [], 0
    for _ in range(count):
        size = shift = 0
        while row[at] >= 128:
            size |= (row[at] & 127) << shift
            at, shift = at + 1, shift + 7
        sizes.append(size | row[at] << shift)
        at += 1
    ends = [at + sum(sizes[:number]) for number in range(count + 1)]
    assert ends[-1] == len(row), "the kernel makes another number of streams than is known here"
    return tuple(row[begin:end] for begin, end in itertools.pairwise(ends))


def inputs_of(seed: Seed) -> list[Input]:
    """With its text as zstd packs it, and as the kernel does."""
    codec = Codec.WASM if seed.method is structured.WASM else Codec.COVER
    streams = split(seed.streams, STREAMS[codec])
    plain = Input(seed.base, codec, digest(seed.target), len(seed.target), streams, seed.text_at)
    return [plain, replace(plain, coded=seed.coded)] if seed.coded else [plain]


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """One small change: a byte, a number, a piece more or less."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice([1, 1, 1, 2, 4, 16, 64]))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at] + rng.randbytes(end - at) + data[end:]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:end] + data[at:end] * rng.choice([1, 2, 20]) + data[end:]
    if kind == 3:
        return data[:at] + uleb(rng.choice(TELLING_NUMBERS)) + data[min(len(data), at + 1) :]
    if kind == 4:
        return data[:at] + rng.randbytes(rng.randrange(1, 5)) + data[at:]
    nearby = (data[at] + rng.choice([-1, 1, 64, 128])) & 255 if at < len(data) else 0
    return data[:at] + bytes([nearby]) + data[at + 1 :]


def damage(rng: random.Random) -> Callable[[bytes], bytes]:
    """A change of the packed bytes: half of them in the header, whose every field means something."""
    if rng.random() < 0.5:
        at, value = rng.randrange(HEADER_BYTES + 14), rng.randrange(256)
        return lambda patch: patch[:at] + bytes([value]) + patch[at + 1 :]
    state = rng.getrandbits(32)
    return lambda patch: changed_bytes(random.Random(state), patch)


def changed(rng: random.Random, given: Input, others: list[Input]) -> Input:
    kind = rng.randrange(20)
    if kind == 0:
        return replace(given, damage=damage(rng))
    if kind == 1:
        return replace(given, base=changed_bytes(rng, given.base))
    if kind == 2:
        return replace(given, base=rng.choice(others).base)
    if kind == 3:
        return replace(given, size=max(0, given.size + rng.choice([-1, 1, -100, 1000, 1 << 15])))
    if given.coded is not None and kind < 10:
        return replace(given, coded=changed_bytes(rng, given.coded))
    streams, other = list(given.streams), rng.choice(others)
    for _ in range(rng.choice([1, 1, 2, 4])):
        pick = rng.choice([number for number, stream in enumerate(streams) if stream or rng.random() < 0.1] or [0])
        if kind == 4 and pick < len(other.streams):
            streams[pick] = other.streams[pick]
        else:
            streams[pick] = changed_bytes(rng, streams[pick])
    return replace(given, streams=tuple(streams))


@dataclass
class Report:
    executions: int = 0
    rebuilt: int = 0
    kept: int = 0
    """Inputs that did something new, the seeds not counted."""
    edges_of_seeds: int = 0
    edges: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def summary(self) -> str:
        return (
            f"{self.executions} executions, {self.rebuilt} rebuilt a target; {self.kept} inputs kept; "
            f"{self.edges_of_seeds} edges with the seeds, {self.edges} now; {len(self.refusals)} kinds of refusal; "
            f"slowest {self.slowest_s:.2f} s of CPU"
        )


class Fuzzer:
    """Deterministic: the same seed makes the same inputs, as long as kernel and seeds are the same."""

    def __init__(self, seed: int) -> None:
        self.report = Report()
        self._rng = random.Random(seed)
        self._seen = 0  # one bit for each edge and order of magnitude
        self._edges = 0
        self._corpus = [given for seed in seeds() for given in inputs_of(seed)]
        for given in self._corpus:
            self._run(given)
        self.report.edges_of_seeds = self.report.edges

    def step(self) -> None:
        given = self._rng.choice(self._corpus[-64:] if self._rng.random() < 0.5 else self._corpus)
        fresh = changed(self._rng, given, self._corpus)
        if self._run(fresh):
            self.report.kept += 1
            self._corpus.append(replace(fresh, damage=bytes))

    def _run(self, given: Input) -> bool:
        """Whether this did something new. Raises AssertionError, with all that is needed to repeat it, where what must
        hold does not."""
        patch = given.patch()
        Watched.executed = b""
        begun = time.process_time()
        try:
            said = self._judge(given.base, patch)
        except Exception as error:
            note = f"base {given.base.hex()}\npatch {patch.hex()}"
            raise AssertionError(f"{type(error).__name__}: {error}\n{note}") from error
        self.report.slowest_s = max(self.report.slowest_s, time.process_time() - begun)
        self.report.executions += 1
        is_new_word = said not in self.report.refusals
        self.report.refusals[said] += 1
        orders = int.from_bytes(Watched.executed.translate(ORDERS), "little")
        is_new = bool(orders & ~self._seen)
        self._seen |= orders
        if is_new:
            self._edges |= int.from_bytes(bytes(byte != 0 for byte in Watched.executed), "little")
            self.report.edges = self._edges.bit_count()
        return is_new or is_new_word

    def _judge(self, base: bytes, patch: bytes) -> str:
        limit = len(base) + SLACK_BYTES
        try:
            info = delta.inspect(patch)
            rebuilt = delta.decode(base, patch, max_size=limit)
        except DeltaError as error:
            return re.sub(r"\d+|'.*'|[0-9a-f]{64}", "", str(error))
        assert digest(rebuilt) == info.target, "these are not the bytes that the header names"
        assert len(rebuilt) == info.target_size <= limit, "more bytes than the caller accepts"
        self.report.rebuilt += 1
        return ""


def fuzz(executions: int, *, seed: int) -> Report:
    with watched_kernel():
        fuzzer = Fuzzer(seed)
        for _ in range(executions):
            fuzzer.step()
    return fuzzer.report


def fuzz_for(seconds: float, *, seed: int) -> Report:
    end = time.monotonic() + seconds
    with watched_kernel():
        fuzzer = Fuzzer(seed)
        while time.monotonic() < end:
            fuzzer.step()
    return fuzzer.report
