"""Tables, sizes, errors: what a person sees."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import BlobMissing, NotADigest
from deployer.errors import HostsUnreachable
from deployer.language.problems import MAX_PROBLEMS_SHOWN, DefinitionInvalid, Problem
from tools import errors
from tools.output import MAX_OUTPUT_LINES, Output, iso_time, printable, quoted_output, size, table_lines


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=5))
def test_nothing_that_is_listed_can_move_the_cursor_or_add_a_line(rows: list[tuple[str, str]]) -> None:
    lines = list(table_lines(("A", "B"), rows))
    assert len(lines) == len(rows) + 1
    assert all(line.isprintable() for line in lines)


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    lines = list(table_lines(("NAME", "N"), [("a", "1"), ("long name", "22")], right=("N",)))
    assert lines == ["NAME        N", "a           1", "long name  22"]


def test_wide_characters_take_two_columns() -> None:
    assert list(table_lines(("A", "B"), [("日本", "x"), ("abcd", "y")])) == ["A     B", "日本  x", "abcd  y"]


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[2Jb\udcff") == "a\\x1b[2Jb\\udcff"
    assert printable("plain ü") == "plain ü"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (1 << 62, "4096.0 PiB")]
)
def test_sizes_have_the_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text


def test_of_what_a_guest_printed_the_end_is_quoted_line_by_line() -> None:
    assert list(quoted_output("a\nb\x1b[2J")) == ["  | a", "  | b\\x1b[2J"]
    long = list(quoted_output("".join(f"{number}\n" for number in range(MAX_OUTPUT_LINES + 2))))
    assert long[0].startswith("  | … 2 lines before")
    assert (long[1], long[-1]) == ("  | 2", f"  | {MAX_OUTPUT_LINES + 1}")
    assert list(quoted_output("")) == []


def test_an_instant_is_iso_8601_in_utc() -> None:
    assert iso_time(1_800_000_000_123_456_789) == "2027-01-15T08:00:00.123456Z"


def reported(error: BaseException, *, as_json: bool = False) -> tuple[int, str]:
    stream = io.StringIO()
    return errors.report(error, stream, as_json=as_json), stream.getvalue()


def test_an_error_says_what_and_what_to_do_next() -> None:
    code, text = reported(BlobMissing("b3:" + "0" * 64))
    assert code == 1
    first, second = text.splitlines()
    assert first.startswith("lowcloud: no blob b3:000")
    assert second.strip().startswith("hint: push it")
    assert reported(NotADigest("x"))[0] == 2


def test_of_very_many_problems_some_are_shown_and_json_has_all() -> None:
    explained = errors.Explained(DefinitionInvalid([Problem("a\x1b.toml", 1, 1, "is wrong", "right it")] * 5_000))
    lines = list(explained.lines())
    assert len(lines) < 300
    assert lines[-1] == f"… and {5_000 - MAX_PROBLEMS_SHOWN} more"
    assert lines[0] == "a\\x1b.toml:1:1: is wrong"
    assert len(explained.as_dict()["problems"]) == 5_000


def test_problems_have_their_places() -> None:
    invalid = DefinitionInvalid(
        [Problem("a.toml", 3, 7, "unknown key", "did you mean hosts?"), Problem("b", 0, 0, "gone")]
    )
    code, text = reported(invalid)
    assert code == 2
    assert text.splitlines() == ["a.toml:3:7: unknown key", "  hint: did you mean hosts?", "b: gone"]
    fields = json.loads(reported(invalid, as_json=True)[1])["error"]
    assert [problem["line"] for problem in fields["problems"]] == [3, 0]


def test_the_first_error_of_a_group_is_the_one_explained() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [NotADigest("x")])])
    assert reported(group)[0] == 2


def test_system_errors_name_their_file_and_no_class() -> None:
    assert reported(FileNotFoundError(2, "No such file or directory", "here"))[1] == (
        "lowcloud: here: No such file or directory\n"
    )


def test_with_json_only_json_is_printed() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(out, err, as_json=True)
    output.line("for people")
    output.remark("for people")
    output.table(("A",), [("b",)])
    output.json({"a": 1})
    with output.progress("work") as update:
        update(1, 2)
    assert (out.getvalue(), err.getvalue()) == ('{"a":1}\n', "")


def test_a_message_of_several_lines_keeps_them_and_none_passes_for_a_line_of_the_command() -> None:
    stream = io.StringIO()
    reasons = {"b1": "refused\nlowcloud: all is well\x1b[2J", "a1": "a1 at 10.0.0.1:7400 cannot be reached"}
    assert errors.report(HostsUnreachable(reasons), stream) == 1
    first, *others = stream.getvalue().splitlines()
    assert first == "lowcloud: 2 hosts cannot be reached:"
    assert others[:3] == ["  a1 at 10.0.0.1:7400 cannot be reached", "  b1: refused", "  lowcloud: all is well\\x1b[2J"]


def test_a_remark_while_a_bar_is_drawn_stands_on_a_line_of_its_own() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        out = Output(io.StringIO(), terminal)
        with out.progress("send") as update:
            update(1, 2)
            out.remark("sending to 2 hosts")
    [line] = [line for line in terminal.getvalue().splitlines() if "sending to" in line]
    assert re.sub(r"\r|\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() == "sending to 2 hosts"
