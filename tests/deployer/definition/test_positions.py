"""The scanner sees the same document as tomllib, and knows where everything in it is."""

from __future__ import annotations

import random
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.language.positions import MAX_DEPTH, MAX_KEY_PARTS, Path, Place, scan
from tests.deployer.definition.toml_documents import Writer, documents, paths_in

MUTATION_ALPHABET = "[]{}=.,#\"'\\\n \tab1-é\r"


@settings(max_examples=150)
@given(documents())
def test_every_key_and_value_is_found_where_it_was_written(written: Writer) -> None:
    positions = scan(written.text)
    assert positions.stopped is None
    assert positions.duplicates == ()
    assert set(positions.values) == paths_in(tomllib.loads(written.text))
    assert positions.values == written.values
    assert positions.keys == written.keys


@settings(max_examples=300)
@given(documents(), st.integers(0, 2**32))
def test_whatever_tomllib_accepts_the_scanner_reads_alike(written: Writer, seed: int) -> None:
    text = mutated(written.text, random.Random(seed))
    positions = scan(text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert positions.stopped is None, text
    assert set(positions.values) == paths_in(document), text
    assert positions.duplicates == (), text


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        match rng.randrange(4):
            case 0:
                text = text[:at] + text[at + rng.randint(1, 3) :]
            case 1:
                text = text[:at] + rng.choice(MUTATION_ALPHABET) + text[at:]
            case 2:
                lines = text.splitlines(keepends=True)
                if lines:
                    lines.insert(rng.randint(0, len(lines)), rng.choice(lines))
                text = "".join(lines)
            case 3:
                end = rng.randint(at, min(len(text), at + 20))
                text = text + text[at:end]
    return text


@pytest.mark.parametrize(
    ("text", "path", "first", "second"),
    [
        ("a = 1\n a = 2\n", ("a",), (1, 1), (2, 2)),
        ("[web]\n\n[web]\n", ("web",), (1, 2), (3, 2)),
        ("[p.web]\nx = 1\n[p.kv]\n[ p . web ]\n", ("p", "web"), (1, 4), (4, 7)),
        ("t = { x = 1, y = 2, x = 3 }\n", ("t", "x"), (1, 7), (1, 21)),
        ("t = { x = 1 }\n[t]\n", ("t",), (1, 1), (2, 2)),
        ("a.b = 1\na.b = 2\n", ("a", "b"), (1, 3), (2, 3)),
        ("a = 1\na.b = 2\n", ("a",), (1, 1), (2, 1)),
        ("[t]\na.b = 1\n[t.a]\n", ("t", "a"), (2, 1), (3, 4)),
        ("\"a\" = 1\n'a' = 2\n", ("a",), (1, 1), (2, 1)),
        ("a = 1\n[[a]]\n", ("a",), (1, 1), (2, 3)),
    ],
)
def test_a_name_defined_twice_has_both_places(
    text: str, path: Path, first: tuple[int, int], second: tuple[int, int]
) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(text)
    (duplicate,) = scan(text).duplicates
    assert duplicate == (path, Place(*first), Place(*second))


def test_a_missing_key_is_placed_at_its_table() -> None:
    positions = scan("[process.web]\nmemory = 1\n")
    assert positions.find(("process", "web", "binary"), of_key=True) == Place(1, 10)
    assert positions.find(("process", "web", "memory")) == Place(2, 10)
    assert positions.find(("process", "web", "memory"), of_key=True) == Place(2, 1)
    assert positions.find(("nowhere",)) == Place(1, 1)


@pytest.mark.parametrize("opening", ["[", "{a=", "[{a=["])
def test_deep_nesting_stops_the_scan_instead_of_the_program(opening: str) -> None:
    positions = scan("x = " + opening * 100_000)
    assert positions.stopped is not None
    assert f"more than {MAX_DEPTH} deep" in str(positions.stopped)


def test_a_long_dotted_key_stops_the_scan() -> None:
    positions = scan("a" + ".a" * 1_000_000 + " = 1\n")
    assert f"more than {MAX_KEY_PARTS} parts" in str(positions.stopped)


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_no_text_makes_the_scanner_fail(text: str) -> None:
    scan(text)
