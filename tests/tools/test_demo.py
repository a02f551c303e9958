"""`lowcloud demo`: the main job, whole."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.tools.command import command, environment, succeed


def test_versions_change_under_load_without_a_failed_request_and_all_of_it_can_be_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    result = succeed("demo", "--dir", kept, "--keep", "--json", timeout_s=270).json
    try:
        assert result["failed"] == 0, result["reasons"]
        assert result["served"] > 100
        assert result["swaps"] == len(result["swap_ms"]) == 8
        assert result["rollback_identical"] is True
        assert result["audit_findings"] == 0
        assert 0 < result["bytes_sent"] < result["bytes_whole"] / 2
        seen = {(row["version"], row["config"]) for row in result["seen"]}
        assert seen == {("1.0", "hello"), ("2.0", "hello"), ("2.0", "good day")}
        assert [change["bytes_sent"] for change in result["changes"][-2:]] == [0, 0]
        names = {row["name"] for row in succeed("ps", "--json", cwd=kept).json}
        assert names == {"web@fra1", "web@ams1", "kv@fra1", "client@ams1"}
        succeed("status", cwd=kept)
    finally:
        stopped = succeed("down", "--json", cwd=kept).json["stopped"]
    assert sorted(stopped) == ["ams1", "fra1"]
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("after", ["1. ", "3. ", "5. "])
def test_interrupted_anywhere_it_leaves_nothing_behind(tmp_path: Path, after: str) -> None:
    with subprocess.Popen(
        command("demo"),
        env=environment(TMPDIR=str(tmp_path)),
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
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "lowcloud: interrupted"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert not processes_of(tmp_path)


def processes_of(directory: Path) -> list[bytes]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in words:
            found.append(words)
    return found
