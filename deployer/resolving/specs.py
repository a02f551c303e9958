"""From a definition to what each host is told: the agent's process specifications and the volumes' sizes.

Here every token and name is replaced by what it stands for, because an agent knows no definition: `host` by the host's
own address, `process@host:port` by an address and a port.
"""

from __future__ import annotations

from agent.api.processes import Endpoint, ProcessSpec, Ready, Update
from cas.digest import Digest
from deployer.errors import DeployerError
from deployer.language import endpoints
from deployer.language.endpoints import OWN_HOST, Listener, ProcessTarget
from deployer.language.network_checks import reached_address
from deployer.language.schema import Definition, Process


class SpecImpossible(DeployerError):
    """A definition that was never checked, or by other rules: something it names is not in it."""

    hint = "this definition was not made by `lowcloud resolve`, or by another version of it; write it anew"


def specs_of(definition: Definition) -> dict[str, dict[str, ProcessSpec]]:
    """Host name to process name to specification, for a resolved definition. Every host is there, also one without
    processes. Raises SpecImpossible."""
    addresses = {name: _host_address(name, host.address) for name, host in definition.host.items()}
    specs: dict[str, dict[str, ProcessSpec]] = {name: {} for name in sorted(definition.host)}
    for name, process in sorted(definition.process.items()):
        listeners = {key: _listener(f"process.{name}.listen.{key}", text) for key, text in process.listen.items()}
        ready, update = _ready(process), _update(process)
        for host in process.hosts:
            if host not in specs:
                raise SpecImpossible(f"process {name} is placed on the unknown host {host}")
            specs[host][name] = _spec(definition, addresses, name, process, host, listeners, ready, update)
    return specs


def volumes_of(definition: Definition) -> dict[str, dict[str, int]]:
    """Host name to volume name to size in bytes. Every host is there. A volume that no process uses is on no host.
    Raises SpecImpossible."""
    volumes: dict[str, dict[str, int]] = {name: {} for name in sorted(definition.host)}
    for name, process in sorted(definition.process.items()):
        for volume in sorted(process.volume.values()):
            for host in process.hosts:
                if volume not in definition.volume or host not in volumes:
                    raise SpecImpossible(f"process {name} names the volume {volume} or the host {host}, unknown here")
                volumes[host][volume] = definition.volume[volume].size
    return volumes


def _spec(
    definition: Definition,
    addresses: dict[str, str],
    name: str,
    process: Process,
    host: str,
    listeners: dict[str, Listener],
    ready: Ready | None,
    update: Update,
) -> ProcessSpec:
    own = addresses[host]
    return ProcessSpec(
        name=name,
        binary=process.binary,
        args=process.args,
        env=process.env,
        config=process.config,
        volume=process.volume,
        listen={key: _endpoint(listener, own) for key, listener in listeners.items()},
        connect={
            key: _connection(definition, addresses, f"process.{name}.connect.{key}", text, host)
            for key, text in process.connect.items()
        },
        cores_milli=process.cores,
        memory_bytes=process.memory,
        disk_bytes=process.disk,
        restart=process.restart,
        restart_limit=process.restart_limit,
        ready=ready,
        update=update,
        secret={
            path: _sealed(definition, f"process.{name}.secret.{path}", secret, host)
            for path, secret in process.secret.items()
        },
    )


def _sealed(definition: Definition, where: str, name: str, host: str) -> Digest:
    """What was sealed to this host."""
    secret = definition.secret.get(name)
    if secret is None or host not in secret.sealed:
        raise SpecImpossible(f"{where}: the secret {name} is not sealed to {host}")
    return secret.sealed[host]


def _ready(process: Process) -> Ready | None:
    ready = process.ready
    return None if ready is None else Ready(ready.tcp, ready.path, ready.within / 1000, ready.run)


def _update(process: Process) -> Update:
    """A process with a volume is stop-first whatever it says: two guests never hold a volume at once."""
    update = process.update
    order = "stop-first" if process.volume else update.order
    return Update(
        order=order,
        drain_s=update.drain / 1000,
        on_failure=update.on_failure,
        probation_s=update.probation / 1000,
        config=update.config,
    )


def _endpoint(listener: Listener, own: str) -> Endpoint:
    address = own if listener.address == OWN_HOST else listener.address
    return Endpoint(address=address, port=listener.port, protocol=listener.protocol)


def _connection(definition: Definition, addresses: dict[str, str], where: str, text: str, here: str) -> Endpoint:
    try:
        target = endpoints.parse_target(text)
    except endpoints.EndpointError as error:
        raise SpecImpossible(f"{where}: {error}") from None
    if not isinstance(target, ProcessTarget):
        return _endpoint(target, addresses[here])
    there = here if target.host == OWN_HOST else target.host
    process = definition.process.get(target.process)
    if process is None or there not in addresses or there not in process.hosts:
        raise SpecImpossible(f"{where}: there is no {target.process}@{there}")
    for key, listening in sorted(process.listen.items()):
        listener = _listener(f"process.{target.process}.listen.{key}", listening)
        if (listener.port, listener.protocol) == (target.port, target.protocol):
            address = reached_address(listener, there=addresses[there], from_here=addresses[here])
            if address is not None:
                return Endpoint(address=address, port=target.port, protocol=target.protocol)
    raise SpecImpossible(f"{where}: {target.process}@{there} has no listener that can be reached there")


def _listener(where: str, text: str) -> Listener:
    try:
        return endpoints.parse_listener(text)
    except endpoints.EndpointError as error:
        raise SpecImpossible(f"{where}: {error}") from None


def _host_address(name: str, text: str) -> str:
    try:
        return endpoints.parse_host_address(text).address
    except endpoints.EndpointError as error:
        raise SpecImpossible(f"host.{name}.address: {error}") from None
