"""The recipes with an interpreter inside the component: built as docs/guests.md says, deployed, changed under load.

Python's is built here (its build and compilation cost about 20 s of CPU, so everything is shown in one go); what
JavaScript's needs does not come from PyPI, and its recipe was tried by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from deployer.language import definition
from tests.examples.test_deployed import EXAMPLES, Requests, deployed
from tests.examples.test_guide import commands_naming
from tests.ports import free_port


@pytest.mark.timeout(600)
def test_asyncio_serves_and_its_configuration_changes_without_a_lost_request(tmp_path: Path) -> None:
    for name in ("greeter.py", "greeter.json", "program.wit"):
        shutil.copy(EXAMPLES / "python-web" / name, tmp_path)
    *_, build = commands_naming("greeter.wasm", "componentize-py ")
    assert Path(build[0]).parent == Path(sysconfig.get_path("scripts"))
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    port = free_port()
    with deployed("python-web", tmp_path, {"127.0.0.1:7401": free_port(), "host:8080": port}) as cloud:
        with Requests(f"http://127.0.0.1:{port}/") as requests:
            cloud.edit("greeter.json", "hello", "good evening")
        seen = list(dict.fromkeys(requests.answers))
        assert seen == ["hello from python 1.0\n", "good evening from python 1.0\n"]
        assert "greeter 1.0 listens on" in cloud.lowcloud("logs", "greeter@one")


def test_the_definition_of_the_javascript_server_is_right() -> None:
    parsed = definition.load(EXAMPLES / "js-web" / "js-web.toml")
    assert parsed.warnings == ()
    assert (EXAMPLES / "js-web" / parsed.definition.process["greeter"].config["/etc/greeter.json"]).is_file()
