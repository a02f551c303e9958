"""How planning grows with the fleet: resolve, plan, and the decision that there is nothing to do.

    python -m benchmarks.plan [--hosts 1000 2000 4000 10000] [--planner minimal] [--profile] [--json FILE]

A fleet of N hosts in 10 regions runs N programs, each on 10 hosts: 10 N processes. Every program listens, connects to
another one, and has a configuration file. Each size is measured in a process of its own: seconds of its CPU time for
each step, and the most memory it ever had. Steps:

    parse    the TOML file becomes a checked definition
    resolve  every name becomes a hash (the files are small and in a store in memory already)
    encode   the canonical form and its digest, which is the version
    none     the decision that nothing has to be done, from the definition and what all hosts report
    one      a plan where one program has a new binary
    all      a plan where every program has a new binary: 10 N calls
    drift    `status`: the comparison of what runs with what should
    diff     beside them, as a peer: `jq`, asked which entries of the same two definitions (as JSON) differ

`growth` is the exponent between the smallest and the largest fleet: 1.0 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
REGIONS = 10
PLACES = 10
T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1000, 2000, 4000, 10_000])
    parser.add_argument("--planner", default="minimal")
    parser.add_argument("--profile", metavar="STEP", help="print where the time of one step goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.planner, args.profile)))
        return 0
    rows = {hosts: _in_own_process(hosts, args) for hosts in args.hosts}
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _in_own_process(hosts: int, args: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.plan", "--one", str(hosts), "--planner", args.planner]
    if args.profile:
        words += ["--profile", args.profile]
    done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    *profile, last = done.stdout.splitlines()
    print("\n".join(profile), end="\n" if profile else "")
    found: dict[str, Any] = json.loads(last)
    return found


def show(rows: dict[int, dict[str, Any]]) -> None:
    smallest, largest = min(rows), max(rows)
    print(f"{'CPU seconds':<12}" + "".join(f"{hosts:>9} hosts" for hosts in rows) + "   growth")
    for step in rows[smallest]:
        values = [rows[hosts].get(step) for hosts in rows]
        low, high = rows[smallest].get(step), rows[largest].get(step)
        growth = math.log(high / low) / math.log(largest / smallest) if low and high and largest > smallest else 0.0
        shown = "".join(f"{'-' if value is None else f'{value:.2f}':>15}" for value in values)
        print(f"{step:<12}{shown}{growth:>9.2f}")


# --- one size -------------------------------------------------------------------------------------------------------


def measure(hosts: int, planner: str, profile: str | None) -> dict[str, float]:
    from cas.memory import MemoryStore
    from deployer.applying.drift import drift
    from deployer.applying.observe import assume
    from deployer.language import definition
    from deployer.planning.planners import make_plan, version
    from deployer.resolving import canonical
    from deployer.resolving.resolve import resolve

    found: dict[str, float] = {}

    def timed(step: str, act: Callable[[], T]) -> T:
        result, found[step] = _cpu_s(act, show=profile == step)
        return result

    with tempfile.TemporaryDirectory(prefix="lowcloud-benchmark-") as directory:
        root = Path(directory)
        _write_files(root)
        file = root / "cloud.toml"
        file.write_text(definition_text(hosts))
        store = MemoryStore()
        parsed = timed("parse", lambda: definition.load(file))
        resolve(parsed, store)
        resolved = timed("resolve", lambda: resolve(parsed, store))
        before = resolved.definition
        data = timed("encode", lambda: canonical.encode(before))
        version_before = version(before)
        observed = assume(before)
        one, every = changed(before, 1), changed(before, hosts)
        plan = timed("none", lambda: make_plan(planner, version_before, version_before, observed))
        assert plan.is_empty
        plan = timed("one", lambda: make_plan(planner, version_before, version(one), observed))
        assert sum(map(len, plan.stages)) == PLACES
        plan = timed("all", lambda: make_plan(planner, version_before, version(every), observed))
        assert sum(map(len, plan.stages)) == hosts * PLACES
        assert timed("drift", lambda: drift(before, observed)) == []
        (root / "before.json").write_bytes(data)
        (root / "after.json").write_bytes(canonical.encode(every))
        jq = _jq_s(root)
        if jq is not None:
            found["diff by jq"] = jq
    found["MiB at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def _cpu_s(act: Callable[[], T], *, show: bool) -> tuple[T, float]:
    """What an earlier step has left behind to be found again is forgotten first."""
    from agent.api import processes
    from deployer.language import endpoints

    for remembered in (
        processes._spec_digest,
        endpoints.parse_listener,
        endpoints.parse_target,
        endpoints.parse_host_address,
        endpoints.is_loopback,
    ):
        remembered.cache_clear()
    if show:
        import cProfile
        import pstats

        profiler = cProfile.Profile()
        result = profiler.runcall(act)
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("cumulative").print_stats(45)
        return result, 0.0
    began = time.process_time()
    result = act()
    return result, time.process_time() - began


def _jq_s(root: Path) -> float | None:
    """CPU seconds of the peer, or None where it is not installed."""
    program = shutil.which("jq")
    if program is None:
        return None
    words = [program, "-n", "--slurpfile", "before", "before.json", "--slurpfile", "after", "after.json"]
    process = subprocess.Popen([*words, "$after[0].definition.process as $new | " + JQ_DIFFERENCE], cwd=root)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


JQ_DIFFERENCE = "$before[0].definition.process as $old | [$new | to_entries[] | select($old[.key] != .value)] | empty"


# --- the fleet ------------------------------------------------------------------------------------------------------


def definition_text(hosts: int) -> str:
    """N hosts, N programs on 10 of them each."""
    lines = ['name = "fleet"']
    lines += [f"[region.r{n}]" for n in range(REGIONS)]
    for n in range(hosts):
        address = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:7400"
        lines += [
            f"[host.h{n}]",
            f'region = "r{n % REGIONS}"',
            f'address = "{address}"',
            'cores = 64\nmemory = "256GiB"\ndisk = "1TiB"',
        ]
    for n in range(hosts):
        places = ", ".join(f'"h{(n + k) % hosts}"' for k in range(PLACES))
        lines += [
            f"[process.p{n}]",
            f'binary = "bin-{n % 50}.wasm"',
            f"hosts = [{places}]",
            f'args = ["--number", "{n}"]',
            'env = { LOG = "info" }',
            f'config = {{ "/etc/app.toml" = "conf-{n % 200}.toml" }}',
            f'listen = {{ http = "host:{8000 + n % PLACES * 2}/tcp" }}',
            f'connect = {{ next = "p{(n + 1) % hosts}@h{(n + 1) % hosts}:{8000 + (n + 1) % hosts % PLACES * 2}/tcp" }}',
            'ready = { tcp = "http", path = "/healthz" }',
        ]
    return "\n".join(lines) + "\n"


def _write_files(root: Path) -> None:
    guest = (ROOT / "tools" / "guests" / "web-1.wasm").read_bytes()
    for n in range(50):
        # a custom section with the number makes each a binary of its own
        payload = b"\x06number" + str(n).encode()
        (root / f"bin-{n}.wasm").write_bytes(guest + b"\x00" + bytes([len(payload)]) + payload)
    for n in range(200):
        (root / f"conf-{n}.toml").write_text(f"number = {n}\n")


def changed(definition: Any, programs: int) -> Any:
    """The same definition where the first so many programs have a new binary."""
    import msgspec

    from cas.digest import digest_of

    binary = digest_of(b"a new version")
    names = sorted(definition.process)[:programs]
    new = {name: msgspec.structs.replace(definition.process[name], binary=binary) for name in names}
    return msgspec.structs.replace(definition, process={**definition.process, **new})


if __name__ == "__main__":
    sys.exit(main())
