"""What must hold between the tables of a definition."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from deployer.language.checks import check
from deployer.language.definition import parse
from deployer.language.problems import DefinitionInvalid
from deployer.language.schema import Definition
from tests.deployer.definition.definitions import definitions

HOSTS = """
name = "shop"
[region.fra]
[region.ams]
[host.fra1]
region = "fra"
address = "10.0.0.1:7400"
cores = 4
memory = "1GiB"
disk = "1GiB"
[host.ams1]
region = "ams"
address = "10.0.0.2:7400"
cores = 4
memory = "1GiB"
disk = "1GiB"
"""

WEB = '[process.web]\nbinary = "w.wasm"\nhosts = ["fra1"]\n'
AMS_WEB = WEB.replace("fra1", "ams1")
KV = '[process.kv]\nbinary = "k.wasm"\nhosts = ["fra1"]\n'
KV_ON_TWO_PORTS = KV + 'listen = { a = "0.0.0.0:1/tcp", b = "host:2/udp" }\n'


def told(text: str) -> list[tuple[str, str, str]]:
    """Path, message and hint of every problem."""
    try:
        parse(text, Path("cloud.toml"))
    except DefinitionInvalid as invalid:
        parts = [(p.message.partition(": "), p.hint) for p in invalid.problems]
        return [(path, message, hint) for (path, _, message), hint in parts]
    return []


@settings(max_examples=40)
@given(definitions())
def test_a_consistent_definition_has_no_findings(definition: Definition) -> None:
    assert check(definition) == []


@pytest.mark.parametrize(
    ("text", "path", "message", "hint"),
    [
        # regions, hosts and placement
        (
            HOSTS.replace('region = "ams"', 'region = "am"'),
            "host.ams1.region",
            'there is no region "am"',
            "did you mean ams?",
        ),
        (HOSTS.replace("host.ams1", "host.host"), "host.host", "no host may be called host", ""),
        (
            HOSTS + WEB.replace('"fra1"', '"fra2"'),
            "process.web.hosts[0]",
            'there is no host "fra2"',
            "did you mean fra1?",
        ),
        (HOSTS + WEB.replace('"fra1"', '"fra1", "fra1"'), "process.web.hosts[1]", "listed twice", "remove one"),
        (
            HOSTS.replace("10.0.0.2", "10.0.0.1"),
            "host.ams1.address",
            "10.0.0.1:7400 is the address of host fra1 already",
            "address and port of its own",
        ),
        (HOSTS.replace("10.0.0.2:7400", "ams1:7400"), "host.ams1.address", "'ams1' is not an IP address", "looked up"),
        (HOSTS.replace("10.0.0.2:7400", "10.0.0.2"), "host.ams1.address", "has no port", "address:port"),
        # blobs and environment
        (HOSTS + WEB.replace("w.wasm", "b3:12"), "process.web.binary", '"b3:12" is no whole digest', "./b3:12"),
        (HOSTS + WEB + "env.lowcloud_X = '1'\n", "process.web.env.lowcloud_X", "set by the host", "another name"),
        # room
        (
            HOSTS + WEB + 'memory = "2GiB"\n',
            "process.web.memory",
            "takes 2GiB of memory, but host fra1 has 1GiB",
            "at most 1GiB",
        ),
        (HOSTS + WEB + "cores = 5\n", "process.web.cores", "takes 5 of cores, but host fra1 has 4", "at most 4"),
        (
            HOSTS + WEB + "cores = 3\n" + KV + 'cores = "1.5"\n',
            "host.fra1.cores",
            "has 4 of cores, but its processes take 4.5: web 3, kv 1.5",
            "elsewhere",
        ),
        (
            HOSTS + WEB + 'disk = "600MiB"\n' + KV + 'volume."/d" = "v"\n[volume.v]\nsize = "600MiB"\n',
            "host.fra1.disk",
            "has 1GiB of disk, but its processes take 1200MiB: kv 600MiB, web 600MiB",
            "",
        ),
        (
            HOSTS + KV + 'volume."/d" = "v"\n[volume.v]\nsize = "2GiB"\n',
            "process.kv.volume",
            "takes 2GiB of disk with its volumes, but host fra1 has 1GiB",
            "",
        ),
        # volumes
        (HOSTS + KV + 'volume."/d" = "v"\n', 'process.kv.volume."/d"', 'there is no volume "v"', "[volume.v]"),
        (
            HOSTS + KV + 'volume."/d" = "v"\n' + WEB + 'volume."/d" = "v"\n[volume.v]\nsize = "1B"\n',
            'process.web.volume."/d"',
            'volume "v" is used by process kv',
            "add another volume",
        ),
        (
            HOSTS + KV + 'volume = { "/d" = "v", "/e" = "v" }\n[volume.v]\nsize = "1B"\n',
            'process.kv.volume."/e"',
            "used by this process already",
            "",
        ),
        (
            HOSTS + KV.replace('"fra1"', '"fra1", "ams1"') + 'volume."/d" = "v"\n[volume.v]\nsize = "1B"\n',
            "process.kv.hosts",
            "a process with a volume runs on one host, not on 2",
            "one process with one volume for each host",
        ),
        # guest paths
        (
            HOSTS + WEB + 'config."/d/x" = "x"\nvolume."/d" = "v"\n[volume.v]\nsize = "1B"\n',
            'process.web.config."/d/x"',
            "the file /d/x lies in the volume /d",
            "a place of its own",
        ),
        (
            HOSTS + WEB + 'config."/d" = "x"\nvolume."/d" = "v"\n[volume.v]\nsize = "1B"\n',
            'process.web.volume."/d"',
            "the volume /d is at the same path as the file /d",
            "",
        ),
        (
            HOSTS + WEB + 'config = { "/a" = "x", "/a/b" = "y" }\n',
            'process.web.config."/a/b"',
            "the file /a/b lies in the file /a",
            "",
        ),
        (
            HOSTS + WEB + 'disk = "1MiB"\nconfig."/tmp/x" = "x"\n',
            'process.web.config."/tmp/x"',
            "the file /tmp/x lies in the scratch space /tmp",
            "",
        ),
        (
            HOSTS + WEB + 'disk = "1MiB"\nconfig."/tmp" = "x"\n',
            'process.web.config."/tmp"',
            "the scratch space /tmp is at the same path as the file /tmp",
            "",
        ),
        (
            HOSTS + WEB + f'config."/{"é" * 200}" = "x"\n',
            f'process.web.config."/{"é" * 56}…"',
            "this path is too long",
            "255 between two slashes",
        ),
        (
            HOSTS + WEB + f"args = {[60_000 * 'x'] * 20}\n",
            "process.web",
            "bytes of arguments, environment and names",
            "configuration file",
        ),
        # ports
        (
            HOSTS + WEB + 'listen = { a = "0.0.0.0:80/tcp", b = "10.0.0.1:80/tcp" }\n',
            "process.web.listen.b",
            "10.0.0.1:80/tcp is taken on host fra1 by 0.0.0.0:80/tcp, listener a of this process",
            "another port",
        ),
        (
            HOSTS + WEB + 'listen.a = "host:80/tcp"\n' + KV + 'listen.a = "10.0.0.1:80/tcp"\n',
            "process.kv.listen.a",
            "taken on host fra1 by host:80/tcp, listener a of process web",
            "another port",
        ),
        (
            HOSTS + WEB + 'listen.a = "0.0.0.0:7400/tcp"\n',
            "process.web.listen.a",
            "is where the agent of host fra1 listens",
            "another port",
        ),
        (
            HOSTS.replace("10.0.0.", "127.0.0.")
            + WEB.replace('"fra1"', '"fra1", "ams1"')
            + 'listen.a = "0.0.0.0:80/tcp"\n',
            "process.web.listen.a",
            "taken on host fra1, which is on the same machine as host ams1",
            "host:80/tcp",
        ),
        (HOSTS + WEB + 'listen.a = "80"\n', "process.web.listen.a", '"80" has no protocol', "/tcp"),
        # readiness
        (HOSTS + WEB + 'ready.tcp = "http"\n', "process.web.ready.tcp", 'there is no listener "http"', "listen"),
        (
            HOSTS + WEB + 'ready.tcp = "htp"\nlisten.http = "0.0.0.0:80/tcp"\n',
            "process.web.ready.tcp",
            'there is no listener "htp"',
            "did you mean http?",
        ),
        (
            HOSTS + WEB + 'ready.tcp = "dns"\nlisten.dns = "0.0.0.0:53/udp"\n',
            "process.web.ready.tcp",
            "listener dns is UDP",
            "TCP listener",
        ),
        (HOSTS + WEB + 'ready.within = "1s"\n', "process.web.ready", "neither a listener nor a command", "run ="),
        (HOSTS + WEB + 'ready = { run = ["x"], path = "/" }\n', "process.web.ready.path", "needs a listener", "tcp"),
        # connections
        (
            HOSTS + WEB + 'connect.kv = "kv@fra1:1/tcp"\n',
            "process.web.connect.kv",
            'there is no process "kv"',
            "processes: web",
        ),
        (
            HOSTS + WEB + 'connect.kv = "kv@fra2:1/tcp"\n' + KV + 'listen.a = "0.0.0.0:1/tcp"\n',
            "process.web.connect.kv",
            'there is no host "fra2"',
            "did you mean fra1?",
        ),
        (
            HOSTS + WEB + 'connect.kv = "kv@ams1:1/tcp"\n' + KV + 'listen.a = "0.0.0.0:1/tcp"\n',
            "process.web.connect.kv",
            "process kv does not run on host ams1",
            "it runs on fra1: write kv@fra1:1/tcp",
        ),
        (
            HOSTS + AMS_WEB + 'connect.kv = "kv@host:1/tcp"\n' + KV + 'listen.a = "0.0.0.0:1/tcp"\n',
            "process.web.connect.kv",
            "process kv does not run on host ams1",
            "it runs on fra1",
        ),
        (
            HOSTS
            + WEB
            + 'connect.kv = "kv@fra1:2/tcp"\n'
            + KV
            + 'listen = { a = "0.0.0.0:1/tcp", b = "host:2/udp" }\n',
            "process.web.connect.kv",
            "process kv has no listener at port 2/tcp",
            "its listeners: a at 0.0.0.0:1/tcp, b at host:2/udp",
        ),
        (
            HOSTS + WEB + 'connect.kv = "kv@fra1:2/tcp"\n' + KV,
            "process.web.connect.kv",
            "process kv listens nowhere",
            "[process.kv.listen]",
        ),
        (
            HOSTS + AMS_WEB + 'connect.kv = "kv@fra1:1/tcp"\n' + KV + 'listen.a = "127.0.0.1:1/tcp"\n',
            "process.web.connect.kv",
            "kv on host fra1 cannot be reached from host ams1: it listens on a at 127.0.0.1:1/tcp",
            "0.0.0.0",
        ),
        (
            HOSTS + WEB + 'connect.kv = "kv@fra1:1/tcp"\n' + KV + 'listen.a = "[::]:1/tcp"\n',
            "process.web.connect.kv",
            "cannot be reached",
            "",
        ),
        (
            HOSTS + WEB + 'connect.kv = "0.0.0.0:1/tcp"\n',
            "process.web.connect.kv",
            "no address that can be",
            "process@",
        ),
    ],
)
def test_a_collision_is_told_with_its_place(text: str, path: str, message: str, hint: str) -> None:
    ((found_path, found_message, found_hint),) = told(text)
    assert found_path == path
    assert message in found_message
    assert hint in found_hint


@pytest.mark.parametrize(
    "text",
    [
        WEB + 'listen = { a = "0.0.0.0:53/tcp", b = "0.0.0.0:53/udp" }\n',
        WEB + 'listen = { a = "0.0.0.0:53/tcp", b = "[::]:53/tcp" }\n',
        WEB + 'listen = { a = "10.0.0.1:53/tcp", b = "10.0.0.3:53/tcp" }\n',
        WEB + 'listen.a = "0.0.0.0:7400/udp"\n',
        WEB + 'listen.a = "0.0.0.0:80/tcp"\n' + KV.replace("fra1", "ams1") + 'listen.a = "0.0.0.0:80/tcp"\n',
        WEB + 'connect.kv = "kv@host:1/tcp"\n' + KV + 'listen.a = "127.0.0.1:1/tcp"\n',
        WEB + 'connect.dns = "9.9.9.9:53/udp"\n',
        WEB + 'config = { "/etc/a" = "x", "/etc/ab" = "x", "/etc/a.b" = "y" }\n',
        WEB + "cores = 2\n" + KV + "cores = 2\n",
    ],
)
def test_what_does_not_collide_is_allowed(text: str) -> None:
    assert told(HOSTS + text) == []


def test_a_table_with_a_mistake_is_not_called_unknown() -> None:
    text = HOSTS.replace("cores = 4", "cores = -4") + WEB + 'connect.kv = "kv@fra1:1/tcp"\n' + "[process.kv]\nx = 1\n"
    paths = [path for path, _, _ in told(text)]
    assert paths == ["host.fra1.cores", "host.ams1.cores", "process.kv.binary", "process.kv.hosts", "process.kv.x"]


def test_every_file_inside_a_volume_is_told() -> None:
    text = WEB + 'config = { "/d/x" = "x", "/d/y" = "y" }\nvolume."/d" = "v"\n[volume.v]\nsize = "1B"\n'
    assert [path for path, _, _ in told(HOSTS + text)] == ['process.web.config."/d/x"', 'process.web.config."/d/y"']


def test_a_fleet_that_is_wrong_in_every_line_is_told_in_time() -> None:
    room = 'cores = 1\nmemory = "1GiB"\ndisk = "1GiB"\nregion = "r"\n'
    hosts = "".join(f'[host.h{n}]\naddress = "127.{n >> 8}.{n & 255}.1:7400"\n{room}' for n in range(2000))
    wrong = "".join(f'[process.p{n}]\nbinary = "x"\nhosts = ["g{n}", "i{n}"]\n' for n in range(2000))
    all_of_them = ", ".join(f'"h{n}"' for n in range(2000))
    right = f'[process.web]\nbinary = "x"\ncores = "0.1"\nhosts = [{all_of_them}]\nlisten.http = "host:80/tcp"\n'
    assert len(told('name = "fleet"\n[region.r]\n' + hosts + right + wrong)) == 4000
