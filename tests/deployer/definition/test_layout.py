"""One layout: the same values, the same comments, and laid out again nothing changes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings

from deployer.language.layout import laid_out
from deployer.language.problems import DefinitionInvalid
from deployer.language.reference import EXAMPLE
from tests.deployer.definition.toml_documents import Writer, documents

FILE = Path("cloud.toml")

UNTIDY = """\


# head

name="shop"
  include = [ "a.toml" ]


[ region . fra ]
[region.ams]

[host.fra1] # first
region = "fra"   # here
address = "10.0.0.1:7400" # there
cores = 8


memory = "32GiB"
# about web
["process".'web']

hosts = [ # all
 "fra1", # one
 # two
 "ams1" ]
env = {LOG="info",A=[1,2]}
args = ["--aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "--bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "ccccccc"]
[process.web.config]
"/etc/web.toml"='conf/web.toml'
[process.web.listen]
http = "0.0.0.0:8080/tcp"
[volume.v]
size = "1GiB"
# end"""

TIDY = """\
# head

name = "shop"
include = ["a.toml"]

[region.fra]
[region.ams]

[host.fra1]                # first
region = "fra"             # here
address = "10.0.0.1:7400"  # there
cores = 8

memory = "32GiB"

# about web
[process.web]
hosts = [
    # all
    "fra1",  # one
    # two
    "ams1",
]
env = { LOG = "info", A = [1, 2] }
args = [
    "--aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "--bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "ccccccc",
]
[process.web.config]
"/etc/web.toml" = 'conf/web.toml'
[process.web.listen]
http = "0.0.0.0:8080/tcp"

[volume.v]
size = "1GiB"
# end
"""


def test_a_file_is_laid_out() -> None:
    assert laid_out(UNTIDY, FILE) == TIDY
    assert laid_out(TIDY, FILE) == TIDY


def test_the_reference_shows_the_layout_but_for_its_columns() -> None:
    def without_columns(text: str) -> list[str]:
        return [" ".join(line.split()) for line in text.splitlines()]

    assert without_columns(laid_out(EXAMPLE, FILE)) == without_columns(EXAMPLE)


@settings(max_examples=100)
@given(documents())
def test_nothing_but_the_layout_changes(document: Writer) -> None:
    made = laid_out(document.text, FILE)
    assert repr(tomllib.loads(made)) == repr(tomllib.loads(document.text))
    assert made.count("#") == document.text.count("#")
    assert laid_out(made, FILE) == made
    assert "\r" not in made


def test_line_ends_and_a_mark_at_the_start_of_another_world_go() -> None:
    assert laid_out("\ufeffa = 1\r\nb = 2 # x\r\n", FILE) == "a = 1\nb = 2  # x\n"


def test_a_string_over_several_lines_stays_as_it_is() -> None:
    text = 'a = """\n  two  \n\n\n# no comment\n"""\n'
    assert laid_out(text, FILE) == text


def test_what_is_not_toml_is_refused_with_its_place() -> None:
    with pytest.raises(DefinitionInvalid, match=r"cloud.toml:2:5: this is not TOML"):
        laid_out("a = 1\nb = \n", FILE)


def test_an_empty_file_stays_empty() -> None:
    assert laid_out("", FILE) == ""
    assert laid_out("\n\n", FILE) == ""
