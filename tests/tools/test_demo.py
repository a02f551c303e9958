"""`lowcloud demo`: the main job, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.tools.command import command, environment, succeed


def leftovers() -> list[str]:
    """Processes and directories of any demo on this machine."""
    found = [str(path) for path in Path(tempfile.gettempdir()).glob("lowcloud-demo-*")]
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"lowcloud-demo-" in words or b"tools.load" in words:
            found.append(words.decode())
    return found


def test_versions_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    before = leftovers()
    result = succeed("demo", "--json", timeout_s=110).json
    assert result["failed"] == 0, result["reasons"]
    assert result["served"] > 100
    assert result["swaps"] == len(result["swap_ms"]) == 8
    assert result["rollback_identical"] is True
    assert result["audit_findings"] == 0
    assert 0 < result["bytes_sent"] < result["bytes_whole"] / 2
    seen = {(row["version"], row["config"]) for row in result["seen"]}
    assert seen == {("1.0", "hello"), ("2.0", "hello"), ("2.0", "good day")}
    assert [change["bytes_sent"] for change in result["changes"][-2:]] == [0, 0]
    assert set(leftovers()) <= set(before)
    assert list(tmp_path.iterdir()) == []


def test_with_keep_it_stays_and_can_be_used_and_ended(tmp_path: Path) -> None:
    shown = succeed("demo", "--dir", tmp_path / "kept", "--keep", timeout_s=110).out
    assert "lowcloud down" in shown
    names = {row["name"] for row in succeed("ps", "--json", cwd=tmp_path / "kept").json}
    assert names == {"web@fra1", "web@ams1", "kv@fra1", "client@ams1"}
    succeed("status", cwd=tmp_path / "kept")
    assert sorted(succeed("down", "--json", cwd=tmp_path / "kept").json["stopped"]) == ["ams1", "fra1"]


@pytest.mark.parametrize("after", ["1. ", "2. ", "3. ", "5. "])
def test_interrupted_anywhere_it_leaves_nothing_behind(tmp_path: Path, after: str) -> None:
    with subprocess.Popen(
        command("demo", "--dir", tmp_path / "demo"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(after):
                break
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "lowcloud: interrupted"
    assert "Traceback" not in err
    mine = str(tmp_path).encode()
    assert not [entry for entry in Path("/proc").glob("[0-9]*") if mine in _words(entry)]


def _words(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
