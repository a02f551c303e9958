"""The agent as `docs/operations.md` installs it, under a real systemd, on a machine that is restarted: `pytest
tests/vm/service.py`, here, not in the machine. Not found by pytest alone: it needs what `tests.vm` needs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from tests.vm.image import ENVIRONMENT, ROOT, TREE, image
from tests.vm.machine import Machine, running

UNIT = "/etc/systemd/system/lowcloud-agent.service"
DEFINITION = """
name = "shop"
[region.fra]
[host.fra1]
region = "fra"
address = "127.0.0.1:7400"
cores = 2
memory = "2GiB"
disk = "4GiB"
[process.web]
binary = "web.wasm"
hosts = ["fra1"]
cores = 1
memory = "32MiB"
listen = { http = "0.0.0.0:8080/tcp" }
ready = { tcp = "http", within = "60s" }
"""
GET = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8080/\", timeout=10).status)'"
WEB = "pgrep -x web"
SLOW_S = 300.0


def unit() -> str:
    """As the document says it."""
    text = (ROOT / "docs" / "operations.md").read_text()
    block = text.partition(f"As `{UNIT}`:\n\n")[2].partition("\n\n4. ")[0]
    return textwrap.dedent(block)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with running(image()) as one:
        one.copy_tree()
        yield one


def serves(machine: Machine) -> bool:
    return machine.run(GET, within_s=60, capture=True).stdout.strip() == "200"


@pytest.mark.timeout(3600)
def test_guests_outlive_the_service_and_come_back_after_a_reboot(machine: Machine) -> None:
    """Enroll, start, apply, restart, upgrade (the same version again), stop, start, reboot."""
    assert "ExecStart=/opt/lowcloud/bin/lowcloud agent" in unit()
    machine.ask(f"ln -s {ENVIRONMENT} /opt/lowcloud && cat > {UNIT} <<'END'\n{unit()}\nEND")
    machine.ask(
        "export PATH=/opt/lowcloud/bin:$PATH && mkdir /root/shop && cd /root/shop && lowcloud init && "
        f"cp {TREE}/tools/guests/web-1.wasm web.wasm && cat > cloud.toml <<'END'\n{DEFINITION}\nEND\n"
        "lowcloud host add fra1 -o fra1.bundle && lowcloud host enroll fra1.bundle --state /var/lib/lowcloud && "
        "systemctl daemon-reload && systemctl enable --now lowcloud-agent",
        within_s=SLOW_S,
    )
    command = "cd /root/shop && /opt/lowcloud/bin/lowcloud"
    machine.wait(lambda: machine.run(f"{command} host show", within_s=120, capture=True).returncode == 0, "it answers")
    assert "no other program" in machine.ask(f"{command} host show", within_s=SLOW_S)
    machine.ask(f"{command} apply --yes", within_s=SLOW_S)
    assert serves(machine)
    first = machine.ask(WEB)
    for act in ("restart", "stop", "start", "kill --signal=KILL --kill-whom=main"):
        machine.ask(f"systemctl {act} lowcloud-agent", within_s=SLOW_S)
        assert serves(machine)
        assert machine.ask(WEB) == first
    machine.wait(lambda: machine.run(f"{command} ps", within_s=120, capture=True).returncode == 0, "it answers again")
    assert "running" in machine.ask(f"{command} ps", within_s=SLOW_S)
    machine.ask("mv /root/shop /root/away")  # no deployer in reach
    machine.reboot()
    machine.wait(lambda: serves(machine), "its guest is back")
    machine.ask("systemctl daemon-reload")
    assert serves(machine)
    assert machine.ask("systemctl --failed --no-legend") == ""
