"""What `show` prints means the same again, and says of every value where it comes from."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings

from deployer.language.definition import load, parse
from deployer.language.provenance import as_toml, values_of
from deployer.language.schema import Definition
from deployer.language.sources import Source, Sources
from deployer.resolving.canonical import version_of
from deployer.resolving.lock import Lock
from deployer.resolving.resolve import Resolved
from tests.deployer.definition.definitions import definitions
from tests.deployer.definition.test_sources import Files

FILE = Path("shop.toml")


def text_of(definition: Definition, *, why: bool = False) -> str:
    nowhere = Sources([Source(FILE, "", {})], None, {}, {})
    return "\n".join(as_toml(values_of(definition, nowhere, Resolved(definition, Lock(), (), {})), why=why)) + "\n"


@settings(max_examples=40)
@given(definitions())
def test_what_is_shown_is_the_same_definition_again(definition: Definition) -> None:
    again = parse(text_of(definition), FILE).definition
    assert version_of(again) == version_of(definition)
    assert version_of(parse(text_of(definition, why=True), FILE).definition) == version_of(definition)


def test_every_value_says_where_it_comes_from(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.put("shop.staging.toml", '[process.web]\nmemory = "32MiB"\nenv.LOG = "debug"\n')
    parsed = load(tmp_path / "shop.toml", "staging")
    origins = {".".join(one.path): one.origin for one in values_of(parsed.definition, parsed.sources)}
    expected = {
        "name": "shop.toml:1",
        "host.fra1.cores": "hosts.toml:5",
        "process.web.memory": "shop.staging.toml:2 (overlay)",
        "process.web.env.LOG": "shop.staging.toml:3 (overlay)",
        "process.web.env.LEVEL": "apps/web.toml:4",
        "process.web.ready.tcp": "apps/web.toml:6",
        "process.web.ready.within": "default",
        "process.web.cores": "default",
        "region.fra.title": "default",
    }
    assert {path: origins[path] for path in expected} == expected
    found = {
        ".".join(one.path): (one.file, one.line, one.column) for one in values_of(parsed.definition, parsed.sources)
    }
    assert found["process.web.env.LEVEL"] == (str(tmp_path / "apps/web.toml"), 4, 31)
    assert found["process.web.cores"] == ("", 0, 0)


def test_a_digest_says_which_name_it_stands_for(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.put("apps/web.toml", '[process.web]\nbinary = "web.wasm"\nhosts = ["fra1"]\n')
    parsed = load(tmp_path / "shop.toml")
    digest = "b3:" + "12" * 32
    process = {"web": type(parsed.definition.process["web"])(binary=digest, hosts=("fra1",))}
    resolved = Definition(name="shop", region=parsed.definition.region, host=parsed.definition.host, process=process)
    shown = {one.path: one for one in values_of(parsed.definition, parsed.sources, Resolved(resolved, Lock(), (), {}))}
    binary = shown["process", "web", "binary"]
    assert (binary.text, binary.origin) == (f'"{digest}"', "apps/web.toml:2, web.wasm")
