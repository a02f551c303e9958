"""What a host tells Prometheus: its processes, volumes and store as text (exposition format 0.0.4). Pure.

Counters belong to a guest and begin anew with the next one, as Prometheus expects of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from agent.api.facts import HostFacts, ProcessState, ProcessStatus, ProcessUsage

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, float]


def exposition(facts: HostFacts, statuses: Sequence[ProcessStatus], usages: Iterable[ProcessUsage]) -> str:
    """The whole answer."""
    usage = {one.process: one for one in usages}
    running = [(status, usage[status.process]) for status in statuses if status.process in usage]
    parts = [
        _metric("lowcloud_host_info", "gauge", "the host, always 1", [(_host_labels(facts), 1)]),
        _metric("lowcloud_host_cores", "gauge", "cores that processes may be given", [({}, facts.cores)]),
        _metric("lowcloud_host_memory_bytes", "gauge", "memory for processes", [({}, facts.memory_bytes)]),
        _metric("lowcloud_host_disk_free_bytes", "gauge", "free on the state's disk", [({}, facts.disk_free_bytes)]),
        _metric("lowcloud_store_blobs", "gauge", "blobs in the store", [({}, facts.store_blobs)]),
        _metric("lowcloud_store_bytes", "gauge", "what they take, encoded", [({}, facts.store_bytes)]),
        _metric(
            "lowcloud_volume_size_bytes",
            "gauge",
            "promised size",
            [({"volume": one.volume}, one.size_bytes) for one in facts.volumes],
        ),
        _metric(
            "lowcloud_volume_used_bytes",
            "gauge",
            "taken on disk",
            [({"volume": one.volume}, one.used_bytes) for one in facts.volumes],
        ),
        _metric(
            "lowcloud_process_state",
            "gauge",
            "1 for the state that a process is in",
            [
                ({"process": one.process, "state": str(state)}, float(one.state is state))
                for one in statuses
                for state in ProcessState
            ],
        ),
        _metric(
            "lowcloud_process_info",
            "gauge",
            "what runs, always 1",
            [
                (
                    {
                        "process": one.process,
                        "binary": one.spec.binary,
                        "spec": one.spec_digest,
                        "release": one.release or "",
                    },
                    1,
                )
                for one in statuses
            ],
        ),
        _metric(
            "lowcloud_process_restarts_total",
            "counter",
            "starts after an end by itself",
            [(_of(one), one.restarts) for one in statuses],
        ),
        _metric(
            "lowcloud_process_starts_in_a_row",
            "gauge",
            "starts without a good run since the last good one",
            [(_of(one), one.troubles.starts if one.troubles else 0) for one in statuses],
        ),
        _metric(
            "lowcloud_process_last_exit_code",
            "gauge",
            "of the last of these starts, where its guest ended by itself",
            [
                (_of(one), one.troubles.exit_code)
                for one in statuses
                if one.troubles and one.troubles.exit_code is not None
            ],
        ),
        _metric(
            "lowcloud_process_next_start_seconds",
            "gauge",
            "when it is started again, Unix time; absent where nothing waits for that",
            [(_of(one), one.next_start_unix) for one in statuses if one.next_start_unix],
        ),
        _metric(
            "lowcloud_process_given_up",
            "gauge",
            "1 where its limit of starts is reached and it stays down",
            [(_of(one), float(bool(one.given_up))) for one in statuses],
        ),
        _metric(
            "lowcloud_process_since_seconds",
            "gauge",
            "when it began to serve or last changed its state, Unix time",
            [(_of(one), one.since_unix) for one in statuses],
        ),
        _metric(
            "lowcloud_process_cpu_seconds_total",
            "counter",
            "processor time of its guest",
            [(_of(one), used.cpu_s) for one, used in running],
        ),
        _metric(
            "lowcloud_process_memory_bytes",
            "gauge",
            "private memory of its guest",
            [(_of(one), used.memory_bytes) for one, used in running],
        ),
        _metric(
            "lowcloud_process_memory_limit_bytes",
            "gauge",
            "the most that its program may use",
            [(_of(one), one.spec.memory_bytes) for one in statuses],
        ),
        _metric(
            "lowcloud_process_disk_bytes",
            "gauge",
            "volumes and scratch space",
            [(_of(one), used.disk_bytes) for one, used in running],
        ),
        _metric(
            "lowcloud_process_connections",
            "gauge",
            "open TCP connections, in and out",
            [(_of(one), used.connections) for one, used in running],
        ),
    ]
    return "".join(parts)


def _metric(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _of(status: ProcessStatus) -> Labels:
    return {"process": status.process}


def _host_labels(facts: HostFacts) -> Labels:
    return {"host": facts.host, "version": facts.version, "kernel": facts.kernel}
