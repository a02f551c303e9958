"""The canonical form: one definition, one text, one digest."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings

from deployer.language.schema import Definition, Host, Process, Ready, Region, Secret, Volume
from deployer.resolving.canonical import CanonicalInvalid, blobs_of, decode, encode, version_of
from tests.deployer.definition.definitions import definitions

BINARY = "b3:" + "12" * 32
CONFIG = "b3:" + "34" * 32

SHOP = Definition(
    name="shop",
    region={"fra": Region(title="Frankfurt ☁")},
    host={"fra1": Host(region="fra", address="10.0.0.1:7400", cores=8000, memory=32 << 30, disk=400 << 30)},
    process={
        "web": Process(
            binary=BINARY,
            hosts=("fra1",),
            args=("--port", "8080"),
            env={"LOG": "info"},
            config={"/etc/web.toml": CONFIG},
            volume={"/data": "files"},
            listen={"http": "0.0.0.0:8080/tcp"},
            ready=Ready(tcp="http"),
        )
    },
    volume={"files": Volume(size=1 << 30)},
)

SEALED = "b3:" + "56" * 32
SHOP_WITH_SECRET = msgspec.structs.replace(
    SHOP,
    process={"web": msgspec.structs.replace(SHOP.process["web"], secret={"/run/secrets/db": "db"})},
    secret={"db": Secret(sealed={"fra1": SEALED})},
)

GOLDEN = (
    '{"definition":{"host":{"fra1":{"address":"10.0.0.1:7400","cores":8000,"disk":429496729600,"memory":34359738368,'
    '"region":"fra"}},"name":"shop","process":{"web":{"args":["--port","8080"],"binary":"' + BINARY + '",'
    '"config":{"/etc/web.toml":"' + CONFIG + '"},"connect":{},"cores":1000,"disk":0,"env":{"LOG":"info"},'
    '"hosts":["fra1"],"listen":{"http":"0.0.0.0:8080/tcp"},"memory":67108864,'
    '"ready":{"path":null,"tcp":"http","within":10000},"restart":"always",'
    '"update":{"drain":30000,"on_failure":"rollback","order":"start-first"},"volume":{"/data":"files"}}},'
    '"region":{"fra":{"title":"Frankfurt ☁"}},"volume":{"files":{"size":1073741824}}},"lowcloud-definition":1}'
)


def test_the_form_of_version_1_stays_what_it_is() -> None:
    assert encode(SHOP).decode() == GOLDEN
    assert version_of(SHOP) == "b3:21e450e0d108368501e2dd2cca2dc10b4937ecf5b8db7539210e695d7f372a11"
    assert decode(GOLDEN.encode()) == SHOP


def test_fields_that_came_later_show_only_where_they_are_used() -> None:
    """Golden: the same form with a secret in it."""
    golden = GOLDEN.replace('"restart":"always",', '"restart":"always","secret":{"/run/secrets/db":"db"},', 1)
    golden = golden.replace(
        ',"volume":{"files"', ',"secret":{"db":{"sealed":{"fra1":"' + SEALED + '"}}},"volume":{"files"'
    )
    assert encode(SHOP_WITH_SECRET).decode() == golden
    assert decode(golden.encode()) == SHOP_WITH_SECRET
    assert blobs_of(SHOP_WITH_SECRET) == sorted([BINARY, CONFIG, SEALED])
    with pytest.raises(CanonicalInvalid, match="not in its canonical form"):
        decode(GOLDEN.replace('"restart":"always",', '"restart":"always","secret":{},', 1).encode())


@settings(max_examples=60)
@given(definitions())
def test_what_is_written_reads_back_and_has_one_text(definition: Definition) -> None:
    data = encode(definition)
    assert decode(data) == definition
    assert encode(decode(data)) == data
    assert json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == data


def test_the_order_of_tables_does_not_matter() -> None:
    other = msgspec.structs.replace(SHOP, process={"a": SHOP.process["web"], **SHOP.process})
    turned = msgspec.structs.replace(SHOP, process={**SHOP.process, "a": SHOP.process["web"]})
    assert version_of(other) == version_of(turned) != version_of(SHOP)


def test_a_file_name_has_no_place_in_a_version() -> None:
    web = msgspec.structs.replace(SHOP.process["web"], config={"/etc/web.toml": "conf/web.toml"})
    with pytest.raises(CanonicalInvalid, match=r"config./etc/web.toml is the file name 'conf/web.toml'"):
        encode(msgspec.structs.replace(SHOP, process={"web": web}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a definition"),
        ("[]", "not a definition"),
        ("\xff", "not a definition"),
        ("[" * 100_000, "not a definition"),
        (GOLDEN[:-1], "not a definition"),
        (GOLDEN.replace('"lowcloud-definition":1', '"lowcloud-definition":2'), "format version 2"),
        (GOLDEN.replace(',"lowcloud-definition":1', ""), "not a definition"),
        (GOLDEN.replace('"cores":8000', '"cores":"8000"'), "not a definition"),
        (GOLDEN.replace('"cores":8000', '"cores":-1'), "not a definition"),
        (GOLDEN.replace('"memory":67108864', '"memory":1'), "not a definition"),
        (GOLDEN.replace('"args"', '"arsg"'), "not a definition"),
        (GOLDEN.replace('"name":"shop"', '"name":"Shop"'), "not a definition"),
        (GOLDEN.replace('"name":"shop"', '"name":"shop\\n"'), "not a definition"),
        (GOLDEN.replace("/etc/web.toml", "/etc/../web.toml"), "not a definition"),
        (GOLDEN.replace(BINARY, "build/web.wasm"), "process.web.binary is not a digest"),
        (GOLDEN + "\n", "not in its canonical form"),
        (GOLDEN.replace(":8000", ": 8000"), "not in its canonical form"),
        (GOLDEN.replace('"cores":8000', '"cores":8000,"cores":8000'), "not in its canonical form"),
        (GOLDEN.replace("☁", "\\u2601"), "not in its canonical form"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(CanonicalInvalid, match=message):
        decode(text.encode("latin-1") if text == "\xff" else text.encode())


def test_the_blobs_of_a_definition_are_its_binaries_and_files() -> None:
    assert blobs_of(SHOP) == [BINARY, CONFIG]
