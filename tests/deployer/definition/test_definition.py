"""Reading a definition file: what it means, and every mistake with its place and what to write instead."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.language.definition import MAX_DEFINITION_BYTES, Parsed, load, parse
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.reference import EXAMPLE
from deployer.language.schema import Process, Ready, Update, Volume
from tests.deployer.definition.test_positions import mutated

FILE = Path("shop/cloud.toml")
NOBODY = 65534

HOST = """
name = "shop"
[region.fra]
[host.fra1]
region = "fra"
address = "10.0.0.1:7400"
cores = 8
memory = "32GiB"
disk = "400GiB"
"""


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(DefinitionInvalid) as caught:
        parse(text, FILE)
    return list(caught.value.problems)


def problem_of(text: str) -> Problem:
    (problem,) = problems_of(text)
    return problem


def test_the_example_of_the_reference_means_what_it_says() -> None:
    parsed = parse(EXAMPLE, FILE)
    web = parsed.definition.process["web"]
    assert parsed.warnings == ()
    assert web == Process(
        binary="build/web.wasm",
        args=("--port", "8080"),
        env={"LOG": "info"},
        hosts=("fra1",),
        cores=1000,
        memory=64 << 20,
        disk=0,
        restart="always",
        config={"/etc/web.toml": "conf/web.toml"},
        listen={"http": "0.0.0.0:8080/tcp"},
        connect={"kv": "kv@fra1:6379/tcp"},
        ready=Ready(tcp="http", within=10_000),
        update=Update(order="start-first", drain=30_000, on_failure="rollback"),
        secret={"/run/secrets/db": "db-password"},
    )
    assert parsed.definition.process["kv"].cores == 500
    assert parsed.definition.volume == {"kv-data": Volume(size=1 << 30)}


def test_two_spellings_of_one_meaning_are_one_definition() -> None:
    plain = HOST + '[process.web]\nbinary = "w"\nhosts = ["fra1"]\nlisten.http = "[::]:80/tcp"\nmemory = "1MiB"\n'
    other = HOST.replace("10.0.0.1:7400", "10.0.0.1:07400").replace('"32GiB"', '"32768 MiB"') + (
        "[process]\n"
        'web = { hosts = ["fra1"], "listen" = { http = "[0::0]:80/tcp" }, binary = \'w\', memory = "1024KiB" }\n'
    )
    assert parse(plain, FILE).definition == parse(other, FILE).definition


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = HOST + (
        "[process.web]\n"  # line 10
        'binray = "w.wasm"\n'
        'hosts = ["fra", "fra1"]\n'
        "memory = 64\n"
        "[process.web.listen]\n"
        'http = "0.0.0.0:80"\n'
        "[volume.data]\n"
        'size = "-1GiB"\n'
        'kind = "ssd"\n'
    )
    told = [(p.line, p.column, p.message.split(":")[0]) for p in problems_of(text)]
    assert told == [
        (10, 10, "process.web.binary"),
        (11, 1, "process.web.binray"),
        (13, 10, "process.web.memory"),
        (17, 8, "volume.data.size"),
        (18, 1, "volume.data.kind"),
    ]


def test_a_process_with_a_mistake_is_still_checked_against_the_others() -> None:
    text = HOST + '[process.web]\nbinary = "w"\nhosts = ["fra"]\nmemory = 64\nlisten.http = "0.0.0.0:80"\n'
    told = [(p.line, p.message.split(":")[0]) for p in problems_of(text)]
    assert told == [(12, "process.web.hosts[0]"), (13, "process.web.memory"), (14, "process.web.listen.http")]


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("nme = 'shop'\nname = 'x'\n", (1, 1), "nme: unknown key", "did you mean name?"),
        ("", (1, 1), "name: is missing", 'name = "shop"'),
        ('name = "My Shop"\n', (1, 8), 'name: "My Shop" is not allowed here', "my-shop"),
        ("name = 7\n", (1, 8), "name: must be text, not the number 7", '"shop"'),
        (HOST + "[[process]]\n", (10, 3), "process: must be a table of names, not a list", "[process.NAME]"),
        (HOST + "process = 1\n", (10, 1), "host.fra1.process: unknown key", "keys here"),
        (HOST + "[process]\nweb = 1\n", (11, 7), "process.web: must be a table, not the number 1", "[process.web]"),
        (HOST + "[volume.Data]\nsize='1B'\n", (10, 9), 'volume.Data: "Data" is not allowed here', "data"),
        (HOST + "[volume.data]\nsize=1\n", (11, 6), "volume.data.size: 1 has no unit", 'size = "1GiB"'),
        (HOST + "[volume.data]\nsize='1Gib'\n", (11, 6), "unknown unit 'Gib'", "did you mean GiB?"),
        (HOST + "[volume.data]\nsize='0B'\n", (11, 6), '"0B" is too little', "the least is 1B"),
        (HOST + "[volume.data]\nsize='2000000TiB'\n", (11, 6), "is too much", "the most is 1048576TiB"),
        (HOST + "[volume.data]\nsize=1979-05-27\n", (11, 6), "a date or time is not a size", 'size = "1GiB"'),
        (HOST + "[volume]\n'' = {size='1B'}\n", (11, 1), "is not allowed here", "lower-case"),
    ],
)
def test_a_mistake_has_its_place_and_a_suggestion(text: str, place: tuple[int, int], message: str, hint: str) -> None:
    problem = problem_of(text)
    assert (problem.line, problem.column) == place
    assert message in problem.message
    assert hint in problem.hint


PROCESS = HOST + '[process.web]\nbinary = "w.wasm"\nhosts = ["fra1"]\n'  # ends in line 12


@pytest.mark.parametrize(
    ("line", "column", "message", "hint"),
    [
        ("restart = 'allways'", 11, 'must be one of "always", "on-failure", "never"', "did you mean always?"),
        ("restart = true", 11, "not true or false", ""),
        ("args = '--port'", 8, 'args: must be a list, not the text "--port"', 'args = ["--port", "8080"]'),
        ("args = ['--port', 80]", 19, "args[1]: must be text, not the number 80", ""),
        ("args = ['a\\u0000']".replace("'", '"'), 9, "args[0]: contains a NUL character", ""),
        ("env = { 'A=B' = '1' }", 9, 'env."A=B": "A=B" is not allowed here', "without `=`"),
        ("env = ['A']", 7, "env: must be a table of names, not a list", 'env = { LOG = "info" }'),
        ("config = { 'etc' = 'x' }", 12, 'config.etc: "etc" is not allowed here', "/etc"),
        ("config = { '/a//b' = 'x' }", 12, "is not allowed here", "for example /a/b"),
        ("config = { '/a/' = 'x' }", 12, "is not allowed here", "for example /a"),
        ("config = { '/a/../b' = 'x' }", 12, "is not allowed here", "for example /b"),
        ("config = { '/' = 'x' }", 12, "is not allowed here", "absolute path"),
        ("config = { '/a' = '' }", 19, "is empty", ""),
        ("ready = { tcp = 'http', path = 'health' }", 32, "is not allowed here", "/health"),
        ("ready = { tcp = 'http', within = '2h' }", 34, "is too much", "the most is 1h"),
        ("ready = 'http'", 9, "ready: must be a table", "[process.web.ready]"),
        ("cores = 0.5", 9, "0.5 is a floating-point number", '"0.5"'),
        ("cores = 0", 9, "0 is too little", "0.001"),
        ("update = { ordre = 'x' }", 12, "update.ordre: unknown key", "did you mean order?"),
        ("hosts = ['fra1']", 1, "defined twice; the first time in line 12, column 1", "rename"),
    ],
)
def test_a_mistake_in_a_process_has_its_place(line: str, column: int, message: str, hint: str) -> None:
    text = PROCESS + line + "\n"
    if line.startswith("ready"):
        text += "listen = { http = '0.0.0.0:80/tcp' }\n"
    problem = problem_of(text)
    assert (problem.line, problem.column) == (13, column)
    assert message in problem.message
    assert hint in problem.hint


def test_an_empty_list_of_hosts_is_a_mistake() -> None:
    problem = problem_of(HOST + '[process.web]\nbinary = "w.wasm"\nhosts = []\n')
    assert "hosts: is empty" in problem.message


def test_names_defined_twice_are_told_with_what_else_is_wrong() -> None:
    problems = problems_of("name = 'a'\nname = 'b'\n[region.x]\n[region.x]\nkey value\n")
    assert [p.line for p in problems] == [2, 4, 5]
    assert "name is defined twice; the first time in line 1, column 1" in problems[0].message
    assert "region.x is defined twice; the first time in line 3, column 9" in problems[1].message
    assert "this is not TOML" in problems[2].message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name = \n", 1, "this is not TOML: invalid value"),
        ("name = 'a\n", 1, "this is not TOML"),
        ("name\n", 1, "this is not TOML: expected '='"),
        ("[process.web\n", 1, "this is not TOML"),
        ('name = "a\\q"\n', 1, "this is not TOML: unescaped '\\'"),
        ("a = [1, 2\n", 2, "this is not TOML: unclosed array"),
        ("a = " + "[" * 5000 + "\n", 1, "nested more than 32 deep"),
        ("a = " + "{a=" * 5000 + "\n", 1, "nested more than 32 deep"),
        ("a" + ".a" * 100_000 + " = 1\n", 1, "more than 32 parts"),
        ("a = " + "9" * 10_000 + "\n", 1, "the number is too large"),
        ("a = 0x" + "9" * 100_000 + "\n", 1, "a: the number is too large"),
        ("a = [{ b = [1, 0b" + "1" * 1_000 + "] }]\n", 1, "a[0].b[1]: the number is too large"),
    ],
)
def test_what_is_not_toml_has_its_line(text: str, line: int, message: str) -> None:
    problem = problems_of(text)[-1]
    assert problem.line in (line, line + 1)
    assert message in problem.message


def test_dots_in_a_text_are_no_dotted_key() -> None:
    parsed = parse(HOST.replace("[region.fra]", "[region.fra]\ntitle = '" + "." * 100 + "'"), FILE)
    assert parsed.definition.region["fra"].title == "." * 100


@settings(max_examples=150)
@given(st.randoms(use_true_random=False))
def test_no_text_makes_the_reader_fail(random: Random) -> None:
    text = mutated(EXAMPLE, random)
    try:
        assert isinstance(parse(text, FILE), Parsed)
    except DefinitionInvalid as invalid:
        assert invalid.problems
        assert all(p.line >= 1 and p.column >= 1 and p.message for p in invalid.problems)


def test_a_problem_prints_as_file_line_column() -> None:
    (line, hint) = str(problem_of("nme = 1\nname = 'x'\n")).split("\n")
    assert line == "shop/cloud.toml:1:1: nme: unknown key"
    assert hint == "  hint: did you mean name?"


@pytest.mark.parametrize(
    "text",
    [
        'name = "\\u001b[2J"\n',
        '"\\u001b[2J" = 1\nname = "a"\n',
        '"\\u001b[2J" = 1\n"\\u001b[2J" = 1\n',
        HOST + '[volume.v]\nsize = "\\u001b[2J"\n',
        HOST + '[process.p]\nbinary = "\\u001b"\nhosts = ["\\u001b[2J"]\nlisten.a = "\\u001b[2J"\n',
        HOST.replace("fra1", '"\\u001b[2J"') + '[process.p]\nbinary = "x"\nhosts = ["fra1"]\n',
    ],
)
def test_no_problem_sends_control_characters_to_a_terminal(text: str) -> None:
    problems = problems_of(text)
    assert all((problem.message + problem.hint).isprintable() for problem in problems)


def test_thousands_of_problems_are_shown_in_part_and_kept_in_full() -> None:
    with pytest.raises(DefinitionInvalid, match="and 4901 more") as caught:
        parse("".join(f"x{n} = 1\n" for n in range(5000)), FILE)
    assert len(caught.value.problems) == 5001


def test_a_volume_that_nobody_uses_is_a_warning() -> None:
    parsed = parse(HOST + '[volume.data]\nsize = "1GiB"\n', FILE)
    (warning,) = parsed.warnings
    assert (warning.line, warning.column) == (10, 9)
    assert "no process uses this volume" in warning.message


# --- files ----------------------------------------------------------------------------------------------------------


def problem_of_file(path: Path) -> Problem:
    with pytest.raises(DefinitionInvalid) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.path == str(path)
    return problem


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    plain, marked = tmp_path / "a.toml", tmp_path / "b.toml"
    plain.write_text(EXAMPLE, encoding="utf-8")
    marked.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode())
    assert load(plain).definition == load(marked).definition
    assert load(plain).directory == tmp_path


def test_a_file_that_is_not_there_or_none_says_so(tmp_path: Path) -> None:
    assert "no such file" in problem_of_file(tmp_path / "missing.toml").message
    assert "is a directory" in problem_of_file(tmp_path).message
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in problem_of_file(tmp_path / "pipe").message


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.touch(mode=0)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(NOBODY)
        assert "Permission denied" in problem_of_file(path).message
    finally:
        os.seteuid(me)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    with path.open("wb") as file:
        file.truncate(MAX_DEFINITION_BYTES + 1)
    assert "larger than" in problem_of_file(path).message


def test_a_file_that_is_not_utf8_has_the_place_of_the_first_wrong_byte(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_bytes("name = 'shop'\n# é: ".encode() + b"\xff\n")
    problem = problem_of_file(path)
    assert (problem.line, problem.column) == (2, 6)
    assert "0xff" in problem.message
