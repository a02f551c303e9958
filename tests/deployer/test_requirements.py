"""`require`: a host that cannot keep a promise is not given the process."""

from __future__ import annotations

import msgspec
import pytest

from agent.api.facts import Guarantee, HostFacts
from deployer.language.schema import Definition, Host, Process, Region
from deployer.resolving.requirements import GuaranteeNotGiven, require_guarantees

HOSTS = {
    name: Host(region="fra", address="10.0.0.1:7400", cores=1, memory=1 << 30, disk=1 << 30) for name in ("h1", "h2")
}
SOFT = Guarantee("disk", False, "what is used is shown", soft=True)
HARD = Guarantee("disk", True, "a file system of its size")


def definition(*require: str) -> Definition:
    web = Process(binary="b3:" + "0" * 64, hosts=("h1", "h2"))
    web = msgspec.convert({**msgspec.to_builtins(web), "require": require}, Process)
    return Definition(name="shop", region={"fra": Region()}, host=HOSTS, process={"web": web})


def facts(*rows: Guarantee) -> HostFacts:
    return HostFacts(
        host="h", cores=1, memory_bytes=1, disk_bytes=1, disk_free_bytes=1, addresses=(), kernel="", engine="",
        guarantees=rows,
    )  # fmt: skip


def test_hosts_that_give_it_and_hosts_that_did_not_answer_are_fine() -> None:
    require_guarantees(definition("disk"), {"h1": facts(HARD)})
    require_guarantees(definition(), {"h1": facts(), "h2": facts(SOFT)})


def test_a_soft_limit_is_not_enough_and_the_reason_is_the_hosts_own() -> None:
    with pytest.raises(GuaranteeNotGiven, match=r"web.require: disk on host h2 is soft there: what is used is shown"):
        require_guarantees(definition("disk"), {"h1": facts(HARD), "h2": facts(SOFT)})


def test_a_host_that_does_not_know_a_promise_does_not_give_it() -> None:
    with pytest.raises(GuaranteeNotGiven, match=r"own-user on host h1 is unknown there"):
        require_guarantees(definition("own-user", "disk"), {"h1": facts(HARD)})


def test_a_promise_that_does_not_exist_is_no_definition() -> None:
    with pytest.raises(msgspec.ValidationError):
        definition("diks")


def test_soft_is_sent_only_where_it_is_so() -> None:
    assert b"soft" not in msgspec.msgpack.encode(HARD)
    assert (HARD.strength, SOFT.strength) == ("hard", "soft")
