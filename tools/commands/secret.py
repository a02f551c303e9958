"""`secret`: what only a process may know, sealed to the hosts that it runs on. The value never is an argument, and
never printed."""

from __future__ import annotations

import sys
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from tools import errors
from tools.cloud import open_cloud, shown_path
from tools.hosts import known_addresses
from tools.output import iso_time, local_time
from tools.standard_input import StandardInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from deployer.cloud.cloud import Cloud
    from deployer.language.schema import Definition
    from deployer.resolving.secrets import SealedSecret
    from tools.output import Output

EXAMPLE = """
pass show db | lowcloud secret set db-password      # for all hosts whose processes use it
lowcloud secret set db-password --for web --file password.txt
lowcloud secret set tls-key --host fra1 --host ams1 --file key.pem
lowcloud secret ls
lowcloud secret rm db-password --host ams1
"""


LAST_SHOWN_UNIX_S = 253_402_300_799
"""The last second of the year 9999."""


def configure(parser: argparse.ArgumentParser) -> None:
    from tools.common_options import add_to_actions

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setting = actions.add_parser("set", help="seal a value, from standard input or a file, to hosts")
    setting.add_argument("name", metavar="NAME", help="as the definition calls it")
    setting.add_argument("--host", action="append", default=[], metavar="HOST", help="for this host")
    setting.add_argument("--for", action="append", default=[], metavar="PROCESS", dest="processes", help="its hosts")
    setting.add_argument("--file", type=Path, metavar="FILE", help="the value, byte for byte (default: stdin)")
    listing = actions.add_parser("ls", help="which secrets are sealed to which host; never what they are")
    removing = actions.add_parser("rm", help="forget a secret; releases that use it keep it")
    removing.add_argument("name", metavar="NAME")
    removing.add_argument("--host", action="append", default=[], metavar="HOST", help="default: all")
    add_to_actions((setting, listing, removing))


def run(args: argparse.Namespace, out: Output) -> int:
    with open_cloud(args) as cloud:
        if args.action == "set":
            return _set(cloud, args, out)
        if args.action == "rm":
            return _remove(cloud, args, out)
        return _list(cloud, out)


# --- set ------------------------------------------------------------------------------------------------------------


def _set(cloud: Cloud, args: argparse.Namespace, out: Output) -> int:
    import asyncio
    import time

    from deployer.resolving.secrets import Secrets

    _check_name(args.name)
    hosts = _hosts(cloud, args)
    value = _value(args.file)
    keys = asyncio.run(_keys(cloud, hosts))
    done = Secrets(cloud.store, cloud.ref).put(args.name, value, keys, at_unix_s=int(time.time()))
    if out.as_json:
        out.json([_as_dict(one) for one in done])
    out.table(("SECRET", "HOST", "SEALED"), [(one.name, one.host, one.digest) for one in done])
    out.remark("`lowcloud resolve` and `lowcloud apply` bring it to the processes that use it")
    return errors.DONE


def _check_name(name: str) -> None:
    from deployer.cloud.cloud import NAME

    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"{name!r} cannot be a secret's name", hint="lower-case letters, digits and hyphens, a letter first"
        )


def _hosts(cloud: Cloud, args: argparse.Namespace) -> list[str]:
    """Those that are named, those of the named processes, or without either those of every process that uses it."""
    from deployer.language.wording import near_hint
    from deployer.resolving.secrets import users

    if args.host and not args.processes:
        return sorted(set(args.host))
    definition = _definition(cloud)
    using = users(definition, args.name)
    hosts = set(args.host)
    for process in args.processes:
        if process not in definition.process:
            hint = near_hint(process, sorted(definition.process), "processes")
            raise errors.UsageError(f"there is no process {process!r}", hint=hint)
        hosts.update(definition.process[process].hosts)
    if not args.processes:
        hosts.update(host for placed in using.values() for host in placed)
    if not hosts:
        hint = f'add "/run/secrets/{args.name}" = "{args.name}" to [process.NAME.secret], or name hosts with --host'
        raise errors.UsageError(f"no process of the definition uses the secret {args.name!r}", hint=hint)
    return sorted(hosts)


def _definition(cloud: Cloud) -> Definition:
    from deployer.language import definition

    return definition.load(cloud.definition_path, cloud.overlay).definition


def _value(file: Path | None) -> bytes:
    from cas.sealed import MAX_SECRET_BYTES
    from deployer.cloud.files import read_file

    if file is not None:
        return read_file(file, max_bytes=MAX_SECRET_BYTES)
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("value (it is not shown): ").encode()
    with BufferedReader(StandardInput()) as given:
        value = given.read(MAX_SECRET_BYTES + 1)
    if len(value) > MAX_SECRET_BYTES:
        raise errors.UsageError(f"a secret has at most {MAX_SECRET_BYTES} bytes")
    return value


async def _keys(cloud: Cloud, hosts: Iterable[str]) -> dict[str, str]:
    """Each host's public key, from the host itself, over a connection that proves which host it is. A host that `up`
    has not started yet is this machine."""
    from msgspec import UNSET

    from deployer.applying.fleet import Fleet
    from deployer.errors import HostsUnreachable, HostUnknown
    from tools.local_cloud import is_local, sealing_key

    addresses = known_addresses(cloud)
    for host in hosts:
        if host not in addresses:
            raise HostUnknown(host, sorted(addresses))
    async with Fleet({host: addresses[host] for host in hosts}, cloud.credentials) as fleet:
        answers = await fleet.each(hosts, lambda client: client.host())
    # Only the directory that holds the authority can start hosts of this machine; in any other operator's, a key of
    # such a host would be one that no host ever has.
    starts_hosts = cloud.authority.is_dir()
    failures = {
        host: str(error) for host, error in answers.failures.items() if not (starts_hosts and is_local(addresses[host]))
    }
    if failures:
        raise HostsUnreachable(failures)
    keys = {host: facts.sealing_key for host, facts in answers.results.items()}
    keys |= {host: sealing_key(cloud, host) for host in answers.failures}
    lacking = [host for host, key in keys.items() if key is UNSET]
    if lacking:
        raise errors.CommandError(
            f"{', '.join(lacking)} has no key to seal to",
            hint="upgrade lowcloud there; its log says if the key is damaged",
        )
    return {host: key for host, key in keys.items() if key is not UNSET}


# --- ls and rm ------------------------------------------------------------------------------------------------------


def _list(cloud: Cloud, out: Output) -> int:
    from deployer.language.problems import DefinitionInvalid
    from deployer.resolving.secrets import Secrets, users

    try:
        definition: Definition | None = _definition(cloud)
    except DefinitionInvalid:
        definition = None
    rows = []
    for one in Secrets(cloud.store, cloud.ref).every():
        using = users(definition, one.name) if definition else {}
        used_by = sorted(process for process, hosts in using.items() if one.host in hosts)
        rows.append((one, _sealed_at(cloud, one), used_by))
    if out.as_json:
        out.json(
            [
                _as_dict(one) | {"at": None if at is None else iso_time(at), "used_by": used_by}
                for one, at, used_by in rows
            ]
        )
    table = [
        (one.name, one.host, "-" if at is None else local_time(at), one.digest, ", ".join(used_by) or "-")
        for one, at, used_by in rows
    ]
    out.table(("SECRET", "HOST", "SINCE", "SEALED", "USED BY"), table)
    return errors.DONE


def _sealed_at(cloud: Cloud, one: SealedSecret) -> int | None:
    """When it was sealed, in nanoseconds; None where the blob is not here, cannot be read, or says something absurd."""
    from cas.errors import CasError
    from cas.sealed import SealedInvalid, head_of

    try:
        at_unix_s = head_of(cloud.store.read(one.digest)).at_unix_s
    except (CasError, SealedInvalid):
        return None
    return at_unix_s * 1_000_000_000 if at_unix_s <= LAST_SHOWN_UNIX_S else None


def _remove(cloud: Cloud, args: argparse.Namespace, out: Output) -> int:
    from deployer.resolving.secrets import Secrets

    secrets = Secrets(cloud.store, cloud.ref)
    hosts = args.host or [one.host for one in secrets.every() if one.name == args.name]
    gone = secrets.remove(args.name, hosts)
    if not gone:
        raise errors.UsageError(f"there is no secret {args.name!r} here", hint="`lowcloud secret ls` lists them")
    if out.as_json:
        out.json([_as_dict(one) for one in gone])
    for one in gone:
        out.line(f"{one.name} for {one.host} is forgotten; releases that use it keep {shown_path(one.digest)}")
    return errors.DONE


def _as_dict(one: SealedSecret) -> dict[str, object]:
    return {"name": one.name, "host": one.host, "hash": one.digest}
