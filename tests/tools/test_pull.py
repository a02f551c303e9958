"""`lowcloud pull`."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.tools.command import command, environment, lowcloud, succeed

DATA = random.Random(2).randbytes(700_000)


@pytest.fixture
def pushed(cloud: Path) -> str:
    (cloud / "file").write_bytes(DATA)
    return str(succeed("push", "--json", "file", cwd=cloud).json[0]["hash"])


def test_a_blob_comes_back_as_the_same_file(cloud: Path, pushed: str) -> None:
    result = succeed("pull", pushed, "-o", "back", "--json", cwd=cloud).json
    assert result == {"hash": pushed, "path": "back", "size": len(DATA)}
    assert (cloud / "back").read_bytes() == DATA


def test_a_short_hash_is_enough_and_a_dash_is_standard_output(cloud: Path, pushed: str) -> None:
    done = subprocess.run(
        command("pull", pushed[3:11], "-o", "-"), cwd=cloud, env=environment(), capture_output=True, check=True
    )
    assert done.stdout == DATA


def test_what_was_there_stays_until_the_whole_file_is_verified(cloud: Path, pushed: str) -> None:
    (cloud / "target").write_bytes(b"before")
    unknown = "b3:" + "0" * 64
    result = lowcloud("pull", unknown, "-o", "target", cwd=cloud)
    assert result.code == 1
    assert unknown in result.err
    assert (cloud / "target").read_bytes() == b"before"
    succeed("pull", pushed, "-o", "target", cwd=cloud)
    assert (cloud / "target").read_bytes() == DATA
    assert sorted(path.name for path in cloud.iterdir() if path.name.startswith(".")) == [".lowcloud"]


@pytest.mark.parametrize("text", ["b3:12", "nonsense", "b3:" + "g" * 64])
def test_what_is_no_hash_is_bad_input(cloud: Path, text: str) -> None:
    assert lowcloud("pull", text, "-o", "x", cwd=cloud).code == 2


def test_a_directory_is_not_written_over(cloud: Path, pushed: str) -> None:
    result = lowcloud("pull", pushed, "-o", ".", cwd=cloud)
    assert result.code == 2
    assert "is a directory" in result.err


def test_json_and_standard_output_exclude_each_other(cloud: Path, pushed: str) -> None:
    assert lowcloud("pull", pushed, "-o", "-", "--json", cwd=cloud).code == 2


def test_a_reader_that_stops_early_is_no_error(cloud: Path, pushed: str) -> None:
    with subprocess.Popen(
        command("pull", pushed, "-o", "-"), cwd=cloud, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == DATA[:10]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
