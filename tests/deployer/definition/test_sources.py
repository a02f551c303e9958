"""Several files are one definition: what includes add, what an overlay changes, and where each mistake is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.language.definition import Parsed, load
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.language.sources import MAX_FILES, MAX_INCLUDE_DEPTH, key_path
from deployer.language.wording import dotted
from deployer.resolving.canonical import version_of
from tests.deployer.definition.definitions import texts

HOSTS = """\
[region.fra]
[host.fra1]
region = "fra"
address = "10.0.0.1:7400"
cores = 8
memory = "1GiB"
disk = "1GiB"
[host.fra2]
region = "fra"
address = "10.0.0.2:7400"
cores = 8
memory = "1GiB"
disk = "1GiB"
"""
WEB = f"""\
[process.web]
binary = "b3:{"12" * 32}"
hosts = ["fra1", "fra2"]
env = {{ LOG = "info", LEVEL = "1" }}
listen = {{ http = "0.0.0.0:80/tcp" }}
ready = {{ tcp = "http" }}
"""
SHOP = 'name = "shop"\ninclude = ["hosts.toml", "apps/web.toml"]\n'


class Files:
    """A directory of files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.put("shop.toml", SHOP)
        self.put("hosts.toml", HOSTS)
        self.put("apps/web.toml", WEB)

    def put(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def load(self, overlay: str | None = None) -> Parsed:
        return load(self.directory / "shop.toml", overlay)

    def problems(self, overlay: str | None = None) -> list[Problem]:
        with pytest.raises(DefinitionInvalid) as caught:
            self.load(overlay)
        return list(caught.value.problems)

    def told(self, overlay: str | None = None) -> list[str]:
        """The problems with their places, as `file:line:column: message`."""
        start = f"{self.directory}/"
        return [str(one).partition("\n")[0].removeprefix(start) for one in self.problems(overlay)]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "shop")


# --- include --------------------------------------------------------------------------------------------------------


def test_files_say_together_what_one_file_would_say(files: Files, tmp_path: Path) -> None:
    one = tmp_path / "one.toml"
    one.write_text('name = "shop"\n' + HOSTS + WEB)
    assert version_of(files.load().definition) == version_of(load(one).definition)


def test_an_included_file_includes_relative_to_itself(files: Files) -> None:
    files.put("shop.toml", 'name = "shop"\ninclude = ["apps/all.toml"]\n')
    files.put("apps/all.toml", 'include = ["web.toml", "../hosts.toml"]\n')
    assert set(files.load().definition.process) == {"web"}


def test_what_two_files_define_names_both_places(files: Files) -> None:
    files.put("more.toml", '# twice\n[process.web]\nbinary = "x"\nhosts = ["fra1"]\n[region.fra]\n')
    files.put("shop.toml", SHOP.replace('"hosts.toml"', '"hosts.toml", "more.toml"'))
    directory = files.directory
    assert files.told() == [
        f"more.toml:5:9: region.fra: is defined in {directory}/hosts.toml:1:9 already",
        f"apps/web.toml:1:10: process.web: is defined in {directory}/more.toml:2:10 already",
    ]


def test_the_name_too_is_said_once(files: Files) -> None:
    files.put("hosts.toml", 'name = "other"\n' + HOSTS)
    assert files.told() == [f"hosts.toml:1:1: name: is defined in {files.directory}/shop.toml:1:1 already"]


def test_links_that_lead_in_a_circle_are_no_files(files: Files) -> None:
    (files.directory / "circle.toml").symlink_to("circle.toml")
    files.put("shop.toml", SHOP.replace('"hosts.toml"', '"hosts.toml", "circle.toml"'))
    assert files.told()[0] == "circle.toml: cannot be read: Too many levels of symbolic links"
    (files.directory / "shop.toml").unlink()
    (files.directory / "shop.toml").symlink_to("shop.toml")
    assert files.told() == ["shop.toml: cannot be read: Too many levels of symbolic links"]


def test_a_name_that_no_file_can_have_is_told_like_any_other(files: Files) -> None:
    files.put("shop.toml", SHOP.replace('"hosts.toml"', f'"hosts.toml", "{"a" * 300}"'))
    assert [one.partition('"')[0] for one in files.told()] == ["shop.toml:2:26: include[1]: there is no file "]


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ('["../outside.toml"]', "lies outside of the definition's directory"),
        ('["/etc/hosts.toml"]', "lies outside of the definition's directory"),
        ('["link.toml"]', "lies outside of the definition's directory"),
        ('["absent.toml"]', "there is no file"),
        ('["apps"]', "is a directory"),
        ('["shop.toml"]', "includes itself: shop.toml -> shop.toml"),
        ('["round.toml"]', "includes itself: shop.toml -> round.toml -> shop.toml"),
        ('["hosts.toml", "./apps/../hosts.toml"]', "is included already"),
        ('"hosts.toml"', "must be a list"),
        ("[7]", "must be text"),
        ('["a\\\\b.toml"]', "is not allowed here"),
        ('[""]', "is empty"),
    ],
)
def test_an_include_that_cannot_be_followed_is_shown_at_its_place(files: Files, include: str, message: str) -> None:
    (files.directory.parent / "outside.toml").write_text("")
    (files.directory / "link.toml").symlink_to(files.directory.parent / "outside.toml")
    files.put("round.toml", 'include = ["shop.toml"]\n')
    files.put("shop.toml", f'name = "shop"\ninclude = {include}\n')
    (told,) = files.told()
    assert message in told


def test_chains_and_crowds_of_files_have_an_end(files: Files) -> None:
    for number in range(MAX_INCLUDE_DEPTH + 2):
        files.put(f"f{number}.toml", f'include = ["f{number + 1}.toml"]\n')
    files.put("shop.toml", 'name = "shop"\ninclude = ["f0.toml"]\n')
    assert [told for told in files.told() if f"more than {MAX_INCLUDE_DEPTH} deep" in told]
    for number in range(MAX_FILES):
        files.put(f"f{number}.toml", "")
    names = ", ".join(f'"f{number}.toml"' for number in range(MAX_FILES))
    files.put("shop.toml", f'name = "shop"\ninclude = [{names}]\n')
    assert f"at most {MAX_FILES} files" in files.told()[-1]


def test_mistakes_of_all_files_are_told_at_once_each_where_it_is(files: Files) -> None:
    files.put("hosts.toml", HOSTS.replace('disk = "1GiB"', 'disc = "1GiB"', 1))
    files.put("apps/web.toml", WEB.replace('"fra2"', '"fra3"').replace('tcp = "http"', 'tcp = "htp"'))
    assert files.told() == [
        "hosts.toml:2:7: host.fra1.disk: is missing",
        "hosts.toml:7:1: host.fra1.disc: unknown key",
        'apps/web.toml:3:18: process.web.hosts[1]: there is no host "fra3"',
        'apps/web.toml:6:17: process.web.ready.tcp: there is no listener "htp"',
    ]
    hints = {problem.hint for problem in files.problems()}
    assert {"did you mean disk?", "did you mean http?"} <= hints


def test_files_that_are_not_toml_are_all_told(files: Files) -> None:
    files.put("hosts.toml", "a = \n")
    files.put("apps/web.toml", "[x\n")
    assert [told.split(":")[0] for told in files.told()] == ["hosts.toml", "apps/web.toml"]


def test_a_key_of_the_head_that_is_misspelt_is_near_it(files: Files) -> None:
    files.put("shop.toml", SHOP.replace("include", "inclued"))
    assert "did you mean include?" in [problem.hint for problem in files.problems()]


# --- overlay --------------------------------------------------------------------------------------------------------


def test_an_overlay_replaces_values_and_merges_tables(files: Files) -> None:
    files.put(
        "shop.staging.toml",
        'remove = ["host.fra2"]\n[process.web]\nhosts = ["fra1"]\nenv.LOG = "debug"\nready.within = "3s"\n',
    )
    plain, staging = files.load().definition, files.load("staging").definition
    assert set(staging.host) == {"fra1"}
    web = staging.process["web"]
    assert (web.hosts, web.env) == (("fra1",), {"LOG": "debug", "LEVEL": "1"})
    assert web.ready is not None
    assert (web.ready.tcp, web.ready.within) == ("http", 3000)
    assert web.binary == plain.process["web"].binary
    assert plain.process["web"].env == {"LOG": "info", "LEVEL": "1"}, "the definition itself is as it was"


def test_a_table_is_replaced_as_a_whole_by_removing_it_first(files: Files) -> None:
    files.put("shop.staging.toml", 'remove = ["process.web.env"]\n[process.web]\nenv = { NEW = "1" }\n')
    assert files.load("staging").definition.process["web"].env == {"NEW": "1"}


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ('remove = ["process.wbe"]', "shop.x.toml:1:11: remove[0]: the definition has no process.wbe to remove"),
        ('remove = ["a b"]', 'shop.x.toml:1:11: remove[0]: "a b" is not a key'),
        ('remove = ["name.x"]', "shop.x.toml:1:11: remove[0]: the definition has no name.x to remove"),
        ('remove = "process.web"', "shop.x.toml:1:10: remove: must be a list"),
        ('remove = ["process.web.binary"]', "shop.x.toml:1:11: process.web.binary: is missing"),
        ('include = ["hosts.toml"]', "shop.x.toml:1:1: include: an overlay includes no files"),
        ("[process.web]\nmemory = 5", "shop.x.toml:2:10: process.web.memory: 5 has no unit"),
        ('[process.new]\nhosts = ["fra1"]', "shop.x.toml:1:10: process.new.binary: is missing"),
        ('[process.web]\nhosts = ["fra9"]', 'shop.x.toml:2:10: process.web.hosts[0]: there is no host "fra9"'),
        ("[process]\nweb = 5", "shop.x.toml:2:7: process.web: must be a table"),
    ],
)
def test_mistakes_of_an_overlay_are_shown_in_it(files: Files, overlay: str, told: str) -> None:
    files.put("shop.x.toml", overlay + "\n")
    assert files.told("x")[0].startswith(told)


def test_a_mistake_below_an_overlay_is_shown_where_it_was_made(files: Files) -> None:
    files.put("apps/web.toml", WEB.replace('LEVEL = "1"', "LEVEL = 1"))
    files.put("shop.x.toml", '[process.web]\nenv.LOG = "debug"\n')
    assert files.told("x") == ["apps/web.toml:4:31: process.web.env.LEVEL: must be text, not the number 1"]


def test_an_overlay_that_is_not_there_names_those_that_are(files: Files) -> None:
    files.put("shop.staging.toml", "")
    (problem,) = files.problems("stagin")
    assert problem.message == "there is no such overlay"
    assert "staging" in problem.hint
    (problem,) = files.problems("../staging")
    assert problem.message.startswith("no overlay can be called")


def test_only_an_overlay_removes(files: Files) -> None:
    files.put("hosts.toml", 'remove = ["process.web"]\n' + HOSTS)
    assert files.told() == ["hosts.toml:1:1: remove: only an overlay removes keys"]


@settings(max_examples=60)
@given(st.lists(st.one_of(texts, st.from_regex(r"[a-z.\"]{1,8}", fullmatch=True)), min_size=1, max_size=4))
def test_every_key_can_be_written_for_removal(names: list[str]) -> None:
    from deployer.language.wording import toml_key

    assert key_path(".".join(map(toml_key, names))) == tuple(names)
    assert dotted(names)


@settings(max_examples=60)
@given(st.text(max_size=20))
def test_no_text_to_remove_makes_it_fail(text: str) -> None:
    key_path(text)
