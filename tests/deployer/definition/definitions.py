"""Generated definitions: resolved, and consistent by every check."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from deployer.language.schema import Definition, Host, Process, Ready, Region, Secret, Update, Volume

names = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True).filter(lambda name: name != "host")
flags = st.booleans()
digests = st.integers(0, 2**256 - 1).map(lambda number: f"b3:{number:064x}")
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
SECRET_PATHS = st.sampled_from(["/run/secrets/a", "/run/secrets/b"])
guest_names = st.from_regex(r"[a-z0-9_.]{1,5}", fullmatch=True).filter(lambda name: name not in (".", ".."))


def variables() -> st.SearchStrategy[dict[str, str]]:
    keys = st.from_regex(r"[A-Z]{1,4}", fullmatch=True).filter(lambda key: not key.startswith("LOWCLOUD_"))
    return st.dictionaries(keys, texts, max_size=2)


@st.composite
def definitions(draw: st.DrawFn, max_hosts: int = 4, max_processes: int = 4) -> Definition:
    """Every host has an address of its own and room for everything."""
    regions = draw(st.lists(names, min_size=1, max_size=2, unique=True))
    host_names = draw(st.lists(names, min_size=1, max_size=max_hosts, unique=True))
    process_names = draw(st.lists(names, max_size=max_processes, unique=True))
    hosts = {
        name: Host(
            region=draw(st.sampled_from(regions)),
            address=f"10.0.0.{index + 1}:7400",
            cores=1_000_000,
            memory=1 << 50,
            disk=1 << 50,
        )
        for index, name in enumerate(host_names)
    }
    volumes: dict[str, Volume] = {}
    processes: dict[str, Process] = {}
    for index, name in enumerate(process_names):
        processes[name] = draw(_process(index, host_names, processes, volumes))
    named = sorted({name for process in processes.values() for name in process.secret.values()})
    return Definition(
        name=draw(names),
        region={name: Region(title=draw(texts)) for name in regions},
        host=hosts,
        process=processes,
        volume=volumes,
        secret={name: Secret(sealed={host: draw(digests) for host in host_names}) for name in named},
    )


@st.composite
def _process(
    draw: st.DrawFn, index: int, hosts: list[str], others: dict[str, Process], volumes: dict[str, Volume]
) -> Process:
    fields: dict[str, Any] = {}
    if draw(flags):
        volume = f"vol-{index}"
        volumes[volume] = Volume(size=draw(st.integers(1, 1 << 30)))
        fields["volume"] = {"/data": volume}
    listen = {f"l{n}": f"0.0.0.0:{8000 + 10 * index + n}/tcp" for n in range(draw(st.integers(0, 2)))}
    if draw(flags):
        tcp = draw(st.sampled_from(sorted(listen))) if listen else None
        path = draw(st.sampled_from([None, "/", "/healthz"])) if tcp else None
        run = draw(st.sampled_from([(), ("--check",)])) if tcp else ("--check", "all")
        fields["ready"] = Ready(tcp=tcp, path=path, run=run, within=draw(st.integers(1, 9999)))
    targets = [
        f"{other}@{process.hosts[0]}:{text.rpartition(':')[2]}"
        for other, process in others.items()
        for text in process.listen.values()
    ]
    connect = draw(st.lists(st.sampled_from(targets), max_size=2, unique=True)) if targets else []
    placed = draw(st.lists(st.sampled_from(hosts), min_size=1, max_size=1 if "volume" in fields else 4, unique=True))
    return Process(
        binary=draw(digests),
        hosts=tuple(sorted(placed)),
        args=tuple(draw(st.lists(texts, max_size=2))),
        env=draw(variables()),
        cores=draw(st.integers(1, 4000)),
        memory=draw(st.integers(65536, 1 << 30)),
        disk=draw(st.integers(0, 1 << 30)),
        restart=draw(st.sampled_from(["always", "on-failure", "never"])),
        config=draw(st.dictionaries(guest_names.map(lambda name: f"/etc/{name}"), digests, max_size=2)),
        secret=draw(st.dictionaries(SECRET_PATHS, st.sampled_from(["key", "password"]), max_size=2)),
        listen=listen,
        connect={f"c{n}": target for n, target in enumerate(connect)},
        update=Update(
            order=draw(st.sampled_from(["start-first", "stop-first"])),
            drain=draw(st.integers(0, 9999)),
            on_failure=draw(st.sampled_from(["rollback", "pause"])),
        ),
        **fields,
    )
