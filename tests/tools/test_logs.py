"""`lowcloud logs`."""

from __future__ import annotations

import json
import signal
import subprocess

from tests.tools.command import TIMEOUT_S, command, environment
from tests.tools.shop import Shop


def test_it_prints_what_the_guest_wrote(shop: Shop) -> None:
    assert "web 1.0 listens on" in shop.succeed("logs", "web@fra1").out
    lines = [json.loads(line) for line in shop.succeed("logs", "web@fra1", "--json").out.splitlines()]
    assert any("web 1.0 listens on" in line["line"] for line in lines)
    assert {(line["process"], line["host"]) for line in lines} == {("web", "fra1")}


def test_following_shows_what_comes_until_it_is_interrupted(shop: Shop) -> None:
    written = len(shop.succeed("logs", "web@ams1").out.splitlines())
    words = command("logs", "web@ams1", "-f")
    process = subprocess.Popen(words, cwd=shop.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            for _ in range(written):  # then it follows
                process.stdout.readline()
            shop.succeed("restart", "web@ams1")
            assert b"web 1.0 listens on" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"lowcloud: interrupted\n")


def test_what_is_no_process_on_a_host_is_an_error(shop: Shop) -> None:
    assert shop.run("logs", "web").code == 2
    assert shop.run("logs", "web@nowhere").code == 2
    result = shop.run("logs", "nothing@fra1")
    assert result.code == 1
    assert "nothing" in result.err
