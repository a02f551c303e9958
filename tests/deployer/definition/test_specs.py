"""What each host is told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from agent.api.processes import Endpoint, ProcessSpec, Ready, Update, spec_digest
from deployer.language import schema
from deployer.language.definition import parse
from deployer.language.schema import Definition, Process
from deployer.resolving.specs import SpecImpossible, specs_of, volumes_of
from tests.deployer.definition.definitions import definitions
from tests.deployer.definition.test_canonical import BINARY, CONFIG, SHOP
from tests.deployer.definition.test_checks import AMS_WEB, HOSTS, KV, WEB


def parsed(text: str) -> Definition:
    return parse(HOSTS + text, Path("cloud.toml")).definition


def test_every_field_of_a_process_reaches_its_host() -> None:
    web = msgspec.structs.replace(
        SHOP.process["web"],
        cores=500,
        memory=1 << 20,
        disk=7,
        restart="never",
        connect={"dns": "9.9.9.9:53/udp"},
    )
    shop = msgspec.structs.replace(SHOP, process={"web": web})
    assert specs_of(shop)["fra1"]["web"] == ProcessSpec(
        name="web",
        binary=BINARY,
        args=("--port", "8080"),
        env={"LOG": "info"},
        config={"/etc/web.toml": CONFIG},
        volume={"/data": "files"},
        listen={"http": Endpoint("0.0.0.0", 8080, "tcp")},
        connect={"dns": Endpoint("9.9.9.9", 53, "udp")},
        cores_milli=500,
        memory_bytes=1 << 20,
        disk_bytes=7,
        restart="never",
        ready=Ready(tcp="http", path=None, within_s=10.0),
        update=Update(order="stop-first", drain_s=30.0, on_failure="rollback"),
    )


def test_readiness_by_a_command_needs_no_listener() -> None:
    job = Process(binary=BINARY, hosts=("fra1",), ready=schema.Ready(run=("check", "--deep"), within=1500))
    spec = specs_of(msgspec.structs.replace(SHOP, process={"job": job}))["fra1"]["job"]
    assert spec.ready == Ready(run=("check", "--deep"), within_s=1.5)


@pytest.mark.parametrize(
    ("web", "kv", "address"),
    [
        (WEB + 'connect.kv = "kv@fra1:1/tcp"\n', 'listen.a = "0.0.0.0:1/tcp"\n', "10.0.0.1"),
        (AMS_WEB + 'connect.kv = "kv@fra1:1/tcp"\n', 'listen.a = "0.0.0.0:1/tcp"\n', "10.0.0.1"),
        (AMS_WEB + 'connect.kv = "kv@fra1:1/tcp"\n', 'listen.a = "host:1/tcp"\n', "10.0.0.1"),
        (AMS_WEB + 'connect.kv = "kv@fra1:1/tcp"\n', 'listen.a = "192.168.0.7:1/tcp"\n', "192.168.0.7"),
        (WEB + 'connect.kv = "kv@host:1/tcp"\n', 'listen.a = "127.0.0.1:1/tcp"\n', "127.0.0.1"),
        (
            AMS_WEB + 'connect.kv = "kv@fra1:1/tcp"\n',
            'listen = { a = "127.0.0.1:1/tcp", b = "host:1/tcp" }\n',
            "10.0.0.1",
        ),
        (AMS_WEB + 'connect.kv = "host:1/tcp"\n', 'listen.a = "0.0.0.0:1/tcp"\n', "10.0.0.2"),
    ],
)
def test_a_connection_becomes_the_address_that_is_reached_from_there(web: str, kv: str, address: str) -> None:
    specs = specs_of(parsed(web + KV + kv))
    (connected,) = [host["web"].connect["kv"] for host in specs.values() if "web" in host]
    assert connected == Endpoint(address, 1, "tcp")


def test_the_token_host_is_each_hosts_own_address() -> None:
    specs = specs_of(parsed(WEB.replace('"fra1"', '"fra1", "ams1"') + 'listen.a = "host:80/tcp"\n'))
    assert {host: specs[host]["web"].listen["a"].address for host in specs} == {"fra1": "10.0.0.1", "ams1": "10.0.0.2"}


def test_a_host_without_processes_is_told_so() -> None:
    definition = parsed(KV + 'volume."/d" = "v"\n[volume.v]\nsize = "1MiB"\n')
    assert {host: list(specs) for host, specs in specs_of(definition).items()} == {"ams1": [], "fra1": ["kv"]}
    assert volumes_of(definition) == {"ams1": {}, "fra1": {"v": 1 << 20}}


@settings(max_examples=40)
@given(definitions())
def test_every_placement_is_a_specification_and_nothing_else(definition: Definition) -> None:
    specs, volumes = specs_of(definition), volumes_of(definition)
    placed = {(host, name) for name, process in definition.process.items() for host in process.hosts}
    assert {(host, name) for host, of_host in specs.items() for name in of_host} == placed
    assert {v for of_host in volumes.values() for v in of_host} == set(definition.volume)
    for of_host in specs.values():
        for spec in of_host.values():
            decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=ProcessSpec)
            assert spec_digest(decoded) == spec_digest(spec)


def changed(**fields: object) -> Definition:
    web: Process = msgspec.structs.replace(SHOP.process["web"], **fields)
    return msgspec.structs.replace(SHOP, process={"web": web})


@pytest.mark.parametrize(
    "definition",
    [
        changed(hosts=("nowhere",)),
        changed(volume={"/data": "nothing"}),
        changed(listen={"http": "nonsense"}),
        changed(connect={"kv": "nonsense"}),
        changed(connect={"kv": "kv@fra1:1/tcp"}),
        changed(connect={"kv": "web@fra1:1/tcp"}),
        msgspec.structs.replace(
            SHOP, host={"fra1": msgspec.structs.replace(SHOP.host["fra1"], address="fra1.example:7400")}
        ),
    ],
)
def test_a_definition_that_was_never_checked_is_refused(definition: Definition) -> None:
    with pytest.raises(SpecImpossible) as caught:
        specs_of(definition)
        volumes_of(definition)
    assert caught.value.hint
