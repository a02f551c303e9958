"""`lowcloud volume`."""

from __future__ import annotations

import socket

from tests.tools.shop import DEADLINE_S, DEFINITION, HOSTS, Shop


def ask(shop: Shop, host: str, *lines: str) -> list[str]:
    """What the key-value server of a host answers."""
    address = (HOSTS[host], shop.kv_port)
    answers = []
    try:
        with socket.create_connection(address, timeout=DEADLINE_S) as connection, connection.makefile("rwb") as file:
            for line in lines:
                file.write(f"{line}\n".encode())
                file.flush()
                answers.append(file.readline().decode().rstrip())
    except OSError as error:
        told = [shop.run("ps").out, shop.run("logs", f"kv@{host}").out]
        raise AssertionError(f"{error!r} after {answers}:\n{told[0]}\n{told[1]}") from error
    return answers


def run_kv_on(shop: Shop, host: str) -> None:
    text = DEFINITION.format(agent=shop.agent_port, web=shop.web_port, kv=shop.kv_port)
    process, kept = text[text.index("[process.kv]") :], text[: text.index("[process.kv]")]
    process = process.replace('hosts = ["fra1"]', f'hosts = ["{host}"]\nready = {{ tcp = "kv", within = "60s" }}')
    shop.definition.write_text(kept + process)
    shop.succeed("apply", "--yes")


def test_a_volume_stays_when_its_process_goes_and_goes_only_when_told(shop: Shop) -> None:
    [held] = shop.json("volume", "ls")
    assert (held["volume"], held["host"], held["held_by"], held["defined"]) == ("kv-data", "fra1", "kv", True)
    refused = shop.run("volume", "delete", "kv-data@fra1", "--yes")
    assert refused.code == 2
    assert "held by kv" in refused.err

    text = shop.definition.read_text()
    shop.definition.write_text(text[: text.index("[process.kv]")])
    shop.succeed("apply", "--yes")
    [kept] = shop.json("volume", "ls")
    assert kept == {**held, "held_by": None, "defined": False, "used_bytes": kept["used_bytes"]}
    assert "kv-data@fra1" in shop.succeed("volume", "ls").out

    assert shop.run("volume", "delete", "kv-data@fra1", "other@fra1", "--yes").code == 2
    assert shop.run("volume", "delete", "kv-data@fra1").code == 2, "nobody could be asked"
    [gone] = shop.json("volume", "delete", "kv-data@fra1", "--yes")
    assert (gone["volume"], gone["host"]) == ("kv-data", "fra1")
    assert shop.json("volume", "ls") == []
    assert "no volumes" in shop.succeed("volume", "ls", "fra1").out


def test_a_volume_moves_to_another_host_by_a_snapshot_which_outlives_the_first(shop: Shop) -> None:
    run_kv_on(shop, "fra1")
    assert ask(shop, "fra1", "SET name ada", "SET number 1") == ["OK", "OK"]
    first = shop.json("volume", "snapshot", "kv-data", "-m", "before the move")
    assert (first["host"], first["entries"], first["left_out"]) == ("fra1", 1, 0)
    assert first["received_blobs"] >= 3
    assert ask(shop, "fra1", "SET number 2") == ["OK"]
    told = shop.succeed("volume", "snapshot", "kv-data@fra1", "--host", "fra1", "--max-pause", "2s").out
    assert "kv-data@fra1: 1 entry," in told
    assert "received" in told
    newest, oldest = shop.json("volume", "snapshots", "kv-data")
    assert oldest["snapshot"] == first["snapshot"]
    assert (oldest["message"], newest["message"], newest["by"]) == ("before the move", "", "operator:ada")
    assert "before the move" in shop.succeed("volume", "snapshots").out

    # Refused before anything is sent, where there is a volume and where a process holds it.
    assert "there is a volume kv-data" in shop.run("volume", "restore", "kv-data", newest["snapshot"]).err
    held = shop.run("volume", "restore", "kv-data", newest["snapshot"], "--replace", "--yes")
    assert (held.code, "held by kv" in held.err) == (1, True)
    assert shop.run("volume", "restore", "kv-data", newest["snapshot"], "--replace").code == 2, "nobody could be asked"
    assert "the volume would have" in shop.run("volume", "restore", "x", "kv-data", "--size", "20B").err

    restored = shop.json("volume", "restore", "kv-data@ams1", newest["snapshot"])
    assert (restored["host"], restored["size_bytes"]) == ("ams1", 16 << 20)
    assert {row["host"]: row["defined"] for row in shop.json("volume", "ls")} == {"ams1": False, "fra1": True}
    run_kv_on(shop, "ams1")
    assert ask(shop, "ams1", "GET name", "GET number") == ["VALUE ada", "VALUE 2"]

    # A collection here keeps what is named, and what is forgotten goes.
    shop.succeed("gc", "--pushed")
    shop.succeed("volume", "delete", "kv-data@fra1", "--yes")
    shop.json("volume", "restore", "kv-data", first["snapshot"][3:15], "--host", "fra1")
    again = shop.json("volume", "restore", "kv-data", newest["snapshot"], "--host", "fra1", "--replace", "--yes")
    assert again["sent_bytes"] < 2000, "most of it was there"
    [forgotten] = shop.json("volume", "forget", first["snapshot"], "--yes")
    assert forgotten["snapshot"] == first["snapshot"]
    assert [one["snapshot"] for one in shop.json("volume", "snapshots")] == [newest["snapshot"]]
    assert "no snapshot" in shop.run("volume", "restore", "kv-data", first["snapshot"], "--host", "fra1").err
    shop.succeed("volume", "forget", newest["snapshot"], "--yes")
    shop.succeed("audit", "verify")
    run_kv_on(shop, "fra1")
    assert ask(shop, "fra1", "GET name", "GET number") == ["VALUE ada", "VALUE 2"]
    shop.succeed("volume", "delete", "kv-data@ams1", "--yes")


def test_a_snapshot_of_what_is_not_there_or_not_clear_says_so(shop: Shop) -> None:
    assert "no host has a volume other" in shop.run("volume", "snapshot", "other").err
    assert "is not on ams1" in shop.run("volume", "snapshot", "kv-data@fra1", "--host", "ams1").err
    assert "no volume kv-data on this host" in shop.run("volume", "snapshot", "kv-data", "--host", "ams1").err
    assert "lower-case letters" in shop.run("volume", "snapshot", "KV@fra1").err
    assert shop.run("volume", "snapshot", "kv/data").code == 2, "no such name, so no host was asked"
    assert "does not name a volume" in shop.run("volume", "delete", "kv-data").err
    assert "--message has 5000 characters" in shop.run("volume", "snapshot", "kv-data", "-m", "x" * 5000).err
    assert "no snapshot of a volume" in shop.run("volume", "restore", "kv-data", "kv-data").err
    assert "--max-pause" in shop.run("volume", "snapshot", "kv-data", "--max-pause", "2m").err
    assert shop.json("volume", "snapshots") == []
    assert "no snapshots" in shop.succeed("volume", "snapshots").out
