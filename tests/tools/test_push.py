"""`lowcloud push`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from blake3 import blake3

from tests.tools.command import environment, lowcloud, succeed


def name_of(data: bytes) -> str:
    return "b3:" + blake3(data).hexdigest()


def test_a_file_is_named_by_its_bytes_and_stored_once(cloud: Path) -> None:
    (cloud / "a").write_bytes(b"the same bytes")
    (cloud / "b").write_bytes(b"the same bytes")
    result = succeed("push", "a", "b", cwd=cloud)
    digest = name_of(b"the same bytes")
    assert result.out == f"{digest}  a\n{digest}  b\n"
    rows = succeed("push", "--json", "a", cwd=cloud).json
    assert rows == [{"path": "a", "hash": digest, "size": 14, "new": False, "stored_bytes": 0}]


def test_a_new_version_costs_only_its_difference(cloud: Path) -> None:
    old = random.Random(1).randbytes(300_000)
    (cloud / "program").write_bytes(old)
    first = succeed("push", "--json", "program", cwd=cloud).json[0]
    (cloud / "program").write_bytes(old[:100_000] + b"something new" + old[100_000:])
    second = succeed("push", "--json", "program", cwd=cloud).json[0]
    assert first["new"]
    assert second["new"]
    assert first["stored_bytes"] >= 300_000
    assert second["stored_bytes"] < 5_000


def test_standard_input_is_a_file_too(cloud: Path) -> None:
    result = succeed("push", "-", "--name", "piped", cwd=cloud, stdin=b"through a pipe")
    assert result.out == f"{name_of(b'through a pipe')}  -\n"


def test_what_cannot_be_read_does_not_stop_the_others(cloud: Path) -> None:
    (cloud / "good").write_bytes(b"good")
    (cloud / "folder").mkdir()
    result = lowcloud("push", "missing", "folder", "good", cwd=cloud)
    assert result.code == 1
    assert result.out == f"{name_of(b'good')}  good\n"
    assert result.err.splitlines() == [
        "lowcloud: missing: No such file or directory",
        "lowcloud: folder: Is a directory",
    ]
    as_json = lowcloud("push", "--json", "missing", "good", cwd=cloud)
    assert as_json.code == 1
    assert [row["path"] for row in as_json.json] == ["good"]
    assert as_json.error["message"] == "missing: No such file or directory"


def test_an_unreadable_file_is_a_clear_error(cloud: Path) -> None:
    (cloud / "secret").touch(mode=0)
    secret = "secret" if os.geteuid() else "/proc/sys/net/ipv4/route/flush"  # write-only, for root too
    result = lowcloud("push", secret, cwd=cloud)
    assert (result.code, result.err) == (1, f"lowcloud: {secret}: Permission denied\n")


def test_a_device_that_never_ends_is_refused_and_the_others_are_stored(cloud: Path) -> None:
    (cloud / "good").write_bytes(b"good")
    result = lowcloud("push", "/dev/zero", "good", cwd=cloud)
    assert result.code == 1
    assert result.out == f"{name_of(b'good')}  good\n"
    assert "/dev/zero: a device, not a file" in result.err


def test_a_name_goes_with_one_file(cloud: Path) -> None:
    assert lowcloud("push", "--name", "x", "a", "b", cwd=cloud).code == 2


def test_a_file_name_that_is_not_utf8_or_moves_the_cursor_is_shown_as_text(cloud: Path) -> None:
    odd = os.fsencode(cloud) + b"/odd\xff\x1b[2J"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    result = lowcloud("push", os.fsdecode(odd), cwd=cloud)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert result.out.startswith(name_of(b"odd"))


def test_a_large_file_passes_through_in_bounded_memory(cloud: Path) -> None:
    size = 160 << 20
    with (cloud / "large").open("wb") as file:
        file.truncate(size)
    # VmHWM belongs to the process's own memory; ru_maxrss would begin with that of the process it was forked from.
    code = (
        "import sys; from tools.main import main; code = main(['push', '--json', 'large']);"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(peak.split()[1], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cloud, env=environment(), capture_output=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["size"] == size
    peak_kib = int(done.stderr.split()[-1])
    assert peak_kib < 128 << 10, f"{peak_kib} KiB for a file of {size >> 10} KiB"
