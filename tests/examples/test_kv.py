"""The key-value server under a real engine: its protocol, and that nothing it has acknowledged is ever lost."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples.guest import Guest, connected, run
from tests.ports import free_port

Built = Callable[[str], Path]

MAX_VALUE = 4096


class Client:
    """Asks one line, reads one line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.file = connection.makefile("rb")

    def ask(self, line: str) -> str:
        self.connection.sendall(line.encode() + b"\n")
        return self.answer()

    def answer(self) -> str:
        return self.file.readline().decode().removesuffix("\n")


@contextmanager
def served(built: Built, volume: Path) -> Iterator[tuple[Guest, Client]]:
    number = free_port()
    with Guest(built("kv"), "--port", str(number), name="kv", directories=[(volume, "/data", True)]) as guest:
        guest.wait_output("listens on")
        with connected(number) as connection:
            yield guest, Client(connection)


@pytest.fixture(scope="module")
def client(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served(built, tmp_path_factory.mktemp("volume")) as (_, client):
        yield client


def test_a_value_is_read_as_it_was_written(client: Client) -> None:
    assert client.ask("SET greeting good  morning ") == "OK"
    assert client.ask("GET greeting") == "VALUE good  morning "
    assert client.ask("SET greeting ") == "OK"
    assert client.ask("GET greeting") == "VALUE "
    assert client.ask("DEL greeting") == "OK"
    assert client.ask("DEL greeting") == "NONE"
    assert client.ask("GET greeting") == "NONE"


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        ("", "ERROR expected GET key, SET key value, DEL key or COUNT"),
        ("get a", "ERROR expected GET key, SET key value, DEL key or COUNT"),
        ("COUNT all", "ERROR expected GET key, SET key value, DEL key or COUNT"),
        ("GET", "ERROR a key has 1 to 256 bytes and no spaces"),
        ("GET a b", "ERROR a key has 1 to 256 bytes and no spaces"),
        ("SET  b", "ERROR a key has 1 to 256 bytes and no spaces"),
        ("SET " + "k" * 257 + " v", "ERROR a key has 1 to 256 bytes and no spaces"),
        ("SET k " + "v" * (MAX_VALUE + 1), "ERROR the value is longer than 4096 bytes"),
    ],
)
def test_a_wrong_line_is_refused_and_the_connection_goes_on(client: Client, request_line: str, answer: str) -> None:
    assert client.ask(request_line) == answer
    assert client.ask("GET absent") == "NONE"


def test_a_line_without_end_closes_the_connection(built: Built, tmp_path: Path) -> None:
    with served(built, tmp_path) as (_, client):
        assert client.ask("SET k " + "v" * 9000) == "ERROR the line is too long"
        assert client.answer() == ""


KEYS = st.sampled_from(["a", "b", "c", "k" * 256, "ä", "x/y"])
VALUES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n"), max_size=40)
REQUESTS = st.one_of(
    st.tuples(st.just("SET"), KEYS, VALUES),
    st.tuples(st.just("GET"), KEYS, st.just("")),
    st.tuples(st.just("DEL"), KEYS, st.just("")),
    st.just(("COUNT", "", "")),
)


@settings(max_examples=30)
@given(requests=st.lists(REQUESTS, max_size=40))
def test_it_answers_as_a_dictionary_would(client: Client, requests: list[tuple[str, str, str]]) -> None:
    for key in ("a", "b", "c", "k" * 256, "ä", "x/y"):
        client.ask(f"DEL {key}")
    base = int(client.ask("COUNT").split()[1])
    model: dict[str, str] = {}
    lines, expected = [], []
    for verb, key, value in requests:
        lines.append({"SET": f"SET {key} {value}", "COUNT": "COUNT"}.get(verb, f"{verb} {key}"))
        if verb == "SET":
            model[key] = value
            expected.append("OK")
        elif verb == "GET":
            expected.append(f"VALUE {model[key]}" if key in model else "NONE")
        elif verb == "DEL":
            expected.append("NONE" if model.pop(key, None) is None else "OK")
        else:
            expected.append(f"COUNT {base + len(model)}")
    client.connection.sendall("".join(f"{line}\n" for line in lines).encode())
    assert [client.answer() for _ in lines] == expected


def test_what_was_acknowledged_survives_a_kill_at_any_moment(built: Built, tmp_path: Path) -> None:
    """Two connections write as fast as they can; the server is killed in the middle; every acknowledged write is there,
    and of each connection's unacknowledged ones at most a prefix."""
    acknowledged: dict[str, int] = {"a": -1, "b": -1}

    def write(name: str, number: int) -> None:
        try:
            with connected(number) as connection:
                client = Client(connection)
                for count in itertools.count():
                    if client.ask(f"SET {name}{count} value {count}") != "OK":
                        return
                    acknowledged[name] = count
        except OSError:
            return

    for _ in range(3):
        number = free_port()
        acknowledged.update(a=-1, b=-1)
        with Guest(built("kv"), "--port", str(number), directories=[(tmp_path, "/data", True)]) as guest:
            guest.wait_output("listens on")
            writers = [threading.Thread(target=write, args=(name, number)) for name in acknowledged]
            for writer in writers:
                writer.start()
            while min(acknowledged.values()) < 50:
                assert guest.process.poll() is None
            guest.kill()
            for writer in writers:
                writer.join()
        with served(built, tmp_path) as (_, client):
            for name, last in acknowledged.items():
                for count in range(last + 1):
                    assert client.ask(f"GET {name}{count}") == f"VALUE value {count}"


def test_a_torn_record_is_dropped_and_everything_before_it_stays(built: Built, tmp_path: Path) -> None:
    log = tmp_path / "kv.log"
    with served(built, tmp_path) as (_, client):
        assert [client.ask(f"SET k{i} {'v' * i}") for i in range(20)] == ["OK"] * 20
        assert client.ask("DEL k3") == "OK"
    whole = log.read_bytes()
    last = 12 + len("k3")
    for lost in (1, last - 1, last + 1, 100):
        log.write_bytes(whole[:-lost])
        with served(built, tmp_path) as (guest, client):
            assert "bytes of an unfinished record" in guest.text()
            assert client.ask("GET k3") == "VALUE vvv"
            assert client.ask("SET again yes") == "OK"
        with served(built, tmp_path) as (guest, client):
            assert "unfinished" not in guest.text()
            assert client.ask("GET again") == "VALUE yes"


def test_a_record_that_is_not_right_ends_the_log(built: Built, tmp_path: Path) -> None:
    with served(built, tmp_path) as (_, client):
        for i in range(3):
            client.ask(f"SET k{i} {'v' * 1000}")
    damaged = bytearray((tmp_path / "kv.log").read_bytes())
    damaged[1500] ^= 1
    (tmp_path / "kv.log").write_bytes(damaged)
    with served(built, tmp_path) as (guest, client):
        assert "1 keys, dropped 2028 bytes" in guest.text()
        assert client.ask("GET k0") == "VALUE " + "v" * 1000


def test_a_log_that_is_mostly_outdated_is_written_afresh(built: Built, tmp_path: Path) -> None:
    log = tmp_path / "kv.log"
    with served(built, tmp_path) as (_, client):
        client.ask("SET kept for ever")
        sizes = []
        for batch in range(20):
            lines = "".join(f"SET key{i} {batch}{'v' * 4000}\n" for i in range(25))
            client.connection.sendall(lines.encode())
            assert {client.answer() for _ in range(25)} == {"OK"}
            sizes.append(log.stat().st_size)
    assert max(sizes) < 1_600_000
    assert not (tmp_path / "kv.log.new").exists()
    with served(built, tmp_path) as (_, client):
        assert client.ask("GET kept") == "VALUE for ever"
        assert client.ask("GET key7") == "VALUE 19" + "v" * 4000
        assert client.ask("COUNT") == "COUNT 26"


def test_many_keys_fit(built: Built, tmp_path: Path) -> None:
    count = 20_000
    with served(built, tmp_path) as (_, client):
        sender = threading.Thread(
            target=client.connection.sendall, args=("".join(f"SET key{i} {i}\n" for i in range(count)).encode(),)
        )
        sender.start()
        assert all(client.answer() == "OK" for _ in range(count))
        sender.join()
    with served(built, tmp_path) as (guest, client):
        assert f"{count} keys\n" in guest.text()
        assert client.ask(f"GET key{count - 1}") == f"VALUE {count - 1}"


def test_without_memory_it_refuses_and_keeps_what_it_has(built: Built, tmp_path: Path) -> None:
    number = free_port()
    with Guest(
        built("kv"), "--port", str(number), directories=[(tmp_path, "/data", True)], memory_bytes=3 << 20
    ) as guest:
        guest.wait_output("listens on")
        with connected(number) as connection:
            client = Client(connection)
            answers = [client.ask(f"SET key{i} {'v' * 4000}") for i in range(1000)]
            kept = answers.index("ERROR no memory")
            assert client.ask(f"GET key{kept - 1}") == "VALUE " + "v" * 4000
            assert client.ask("DEL key0") == "OK"
            assert client.ask(f"SET again {'v' * 4000}") == "OK"


def test_without_a_volume_it_ends_with_the_reason(built: Built) -> None:
    assert run(built("kv")) == (1, "guest: cannot open the log: no-entry\n")


def test_a_volume_that_cannot_be_written_ends_it_with_the_reason(built: Built, tmp_path: Path) -> None:
    status, output = run(built("kv"), directories=[(tmp_path, "/data", False)])
    assert status == 1
    assert output.startswith("guest: cannot open the log: ")
