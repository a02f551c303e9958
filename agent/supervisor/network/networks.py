"""The namespaces of one agent's guests, and what goes with them on the host: block, rules, forwarding.

What is there follows what is needed. The first guest in a namespace brings a block of addresses, a table of rules, and
forwarding; the last one takes them away. A namespace is made before its guest is forked, and buried a moment after
nobody holds it any more: until then the kernel still tells the clients of a guest that has ended.

Where what is:

- in the kernel: namespaces, with their slot in the interface's name; the table, named after the state directory; the
  block, reserved by a route that makes everything unreachable in it, which a second agent cannot add;
- in the supervisor's state file: the block's number.

So a supervisor that succeeds a killed one finds everything again. The table it makes anew, in one step, from what it
has taken over; whatever else was there is gone by that.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from agent.api.processes import Endpoint
from agent.runtime import GuestFailed, GuestOrder, local_address
from agent.supervisor.event_loop import Loop, Timer
from agent.supervisor.network import namespace, ruleset
from agent.supervisor.network.addressing import BLOCKS, FIRST_SLOT, SLOTS, Block, ports_inside
from agent.supervisor.network.forwarding import Forwarding
from agent.supervisor.network.namespace import Namespace, inside
from agent.supervisor.network.netlink import Netlink
from agent.supervisor.network.nftables import Nftables, RulesRefused
from agent.supervisor.network.ruleset import Exit, Target

LINGER_S: Final = 1.0
LOOK_S: Final = 5.0
"""So often it is looked whether the rules are still there: who reloads a firewall's rules removes all others."""
BLOCK_ATTEMPTS: Final = 64
SLOT_ATTEMPTS: Final = 64


class Opened(NamedTuple):
    """What is there while any guest has a namespace."""

    block: Block
    rules: Nftables
    tracked: Netlink


class Networks:
    """See the module's head. `name` tells this agent from the others of the machine (a hash of its state directory);
    `block`: the number of the one it had before. Use from one thread."""

    def __init__(self, name: str, loop: Loop, log: Callable[[str], None], block: int | None = None) -> None:
        self._name = f"{ruleset.GUARD_TABLE}-{name}"
        self._first_choice = int(name, 16) % BLOCKS
        self._loop = loop
        self._log = log
        self._before = block
        self._opened: Opened | None = None
        self._served: dict[Endpoint, Target] = {}
        self._exits: dict[int, Exit] = {}
        self._living: dict[int, Namespace] = {}
        """By slot: held by somebody, or about to be buried."""
        self._burials: dict[int, Timer] = {}
        self._next_slot = FIRST_SLOT
        self._begun: list[str] | None = None
        self._looking: Timer | None = None

    @property
    def block(self) -> int | None:
        """The number of the block that is in use; the supervisor keeps it for its successor."""
        return self._opened.block.number if self._opened else None

    # --- namespaces -------------------------------------------------------------------------------------------------

    def make(self, order: GuestOrder) -> Namespace:
        """A namespace for a guest that is to come. Raises GuestFailed."""
        made: Namespace | None = None
        try:
            opened = self._open()
            forward(order, opened.rules)
            slot, descriptor = self._make_in_free_slot(opened.block)
            made = self._take(opened.block, slot, descriptor, order)
            self._let_out(made, order)
        except OSError as error:
            if made is not None:
                made.hold().let_go()
            self._close_if_empty()
            raise GuestFailed(f"{order.process} cannot be given a network namespace: {error}") from error
        return made

    def adopt(self, order: GuestOrder, descriptor: int) -> Namespace | None:
        """The namespace of a guest that runs already, of whom the descriptor is; None where that is the host's own.
        The descriptor is ours from here on. Raises OSError."""
        inode = os.fstat(descriptor).st_ino
        known = next((one for one in self._living.values() if one.inode == inode), None)
        slot = known.slot if known else self._slot_of(descriptor)
        if known is not None or slot is None:
            os.close(descriptor)
            return known
        found = self._take(self._open().block, slot, descriptor, order)
        self._let_out(found, order)
        return found

    def _slot_of(self, descriptor: int) -> int | None:
        with inside(descriptor):
            names = [name for _, name in socket.if_nameindex()]
        number = self.block if self._opened else self._before
        slots = [Block(number).slot_of(name) for name in names] if number is not None else []
        return next((slot for slot in slots if slot is not None), None)

    def _make_in_free_slot(self, block: Block) -> tuple[int, int]:
        """Slots go round, so that one is not given again while anything still remembers who had it."""
        for _ in range(SLOT_ATTEMPTS):
            slot, self._next_slot = self._next_slot, self._next_slot + 1
            if self._next_slot == SLOTS:
                self._next_slot = FIRST_SLOT
            if slot in self._living:
                continue
            with contextlib.suppress(FileExistsError):
                return slot, namespace.make(block, slot)
        raise OSError(errno.EADDRINUSE, "no address is free")

    def _take(self, block: Block, slot: int, descriptor: int, order: GuestOrder) -> Namespace:
        taken = Namespace(block, slot, descriptor, ports_inside(order.listen.values()), self._unused)
        self._living[slot] = taken
        return taken

    def _let_out(self, made: Namespace, order: GuestOrder) -> None:
        """To its peers, and to its own endpoints: its check may ask there."""
        peers = (msgspec.structs.replace(endpoint, address=local_address(endpoint)) for endpoint in order.endpoints)
        leaving = Exit(made.slot, frozenset(peers))
        self._run(ruleset.opened(self._name, made.block, leaving))
        self._exits[made.slot] = leaving

    def _unused(self, one: Namespace) -> None:
        self._burials[one.slot] = self._loop.after(LINGER_S, lambda: self._bury(one))

    def _bury(self, one: Namespace) -> None:
        """Nothing is left of it but, for as long as the kernel has to say something to its clients, its interface."""
        self._burials.pop(one.slot).cancel()
        del self._living[one.slot]
        one.close()
        self._try(lambda: self._take_back(one))
        self._close_if_empty()

    def _take_back(self, one: Namespace) -> None:
        leaving = self._exits.pop(one.slot, None)
        if leaving is not None:
            self._run(ruleset.closed(self._name, one.block, leaving))
        if self._opened is not None:
            for version in namespace.versions():
                self._opened.tracked.forget_connections(one.block.address(one.slot, version))

    # --- who serves -------------------------------------------------------------------------------------------------

    def move(self, changes: Mapping[Endpoint, tuple[Namespace, int] | None]) -> None:
        """Let new connections to these endpoints go to a namespace's port, or to the host's own sockets; all in one
        step. Raises OSError: then nothing has changed."""
        wanted = {endpoint: Target(to[0].slot, to[1]) if to else None for endpoint, to in changes.items()}
        differing = {endpoint: to for endpoint, to in wanted.items() if self._served.get(endpoint) != to}
        if not differing or self._opened is None:
            return
        self._run(ruleset.moved(self._name, self._opened.block, self._served, differing))
        for endpoint, target in differing.items():
            if target is None:
                self._served.pop(endpoint, None)
            else:
                self._served[endpoint] = target

    # --- what all of them need --------------------------------------------------------------------------------------

    def _open(self) -> Opened:
        """Reserve a block, and lay down the rules. Raises OSError."""
        if self._opened is None:
            rules = Nftables()  # first, because it fails where the library is missing
            tracked = Netlink.tracked()
            self._opened = Opened(self._reserve(), rules, tracked)
            self._try(tracked.forget_what_stands_still)
            self._run(ruleset.table(self._name, self._opened.block))
            self._looking = self._loop.after(LOOK_S, self._look_after_rules)
        return self._opened

    def _reserve(self) -> Block:
        """The block from before, whose reservation may still be there, or the first free one from a place that
        depends on the agent's name."""
        with Netlink.routes() as routes:
            if self._before is not None:
                again = Block(self._before)
                for version in namespace.versions():
                    with contextlib.suppress(FileExistsError):
                        routes.reserve(again.network(version))
                return again
            for offset in range(BLOCK_ATTEMPTS):
                block = Block((self._first_choice + offset) % BLOCKS)
                with contextlib.suppress(FileExistsError):
                    routes.reserve(block.v4)  # says who has it; that of IPv6 goes with it
                    with contextlib.suppress(FileExistsError):
                        if 6 in namespace.versions():
                            routes.reserve(block.v6)
                    return block
        raise OSError(errno.EADDRINUSE, "other agents of this machine have all blocks of addresses")

    def _close_if_empty(self) -> None:
        if not self._living and self._opened is not None:
            opened, self._opened, self._before = self._opened, None, None
            if self._looking is not None:
                self._looking.cancel()
            self._served.clear()
            self._close(opened)

    def _close(self, opened: Opened) -> None:
        """Take away what all of them needed. What fails is not tried again."""
        self._try(lambda: opened.rules.run(f"table inet {self._name}\ndelete table inet {self._name}"))
        with Netlink.routes() as routes:
            for _, name in socket.if_nameindex():
                if opened.block.slot_of(name) is not None:
                    self._try(functools.partial(routes.delete_link, name))
            for version in namespace.versions():
                self._try(functools.partial(routes.free, opened.block.network(version)))
        self._try(Forwarding(opened.rules).switch_off_after_last)
        opened.rules.close()
        opened.tracked.close()

    def close(self) -> None:
        """Bury all that nobody holds any more, at once."""
        for slot in list(self._burials):
            self._bury(self._living[slot])

    def sweep(self) -> None:
        """Remove what a killed supervisor has left of namespaces, where nothing of them was taken over."""
        if self._before is not None and self._opened is None:
            self._try(self._open)
        for one in self._living.values():
            one.hold().let_go()
        self._close_if_empty()

    def _run(self, commands: str) -> None:
        """Raises OSError; then nothing has changed."""
        if self._begun is not None:
            self._begun.append(commands)
        elif commands and self._opened is not None:
            rules = self._opened.rules
            try:
                rules.run(commands)
            except RulesRefused:
                if self._name in rules.tables():
                    raise
                self._lay_down_again(self._opened, commands)

    def _look_after_rules(self) -> None:
        opened = self._opened
        if opened is None:
            return
        self._looking = self._loop.after(LOOK_S, self._look_after_rules)
        with self._trying():
            if self._name not in opened.rules.tables():
                self._lay_down_again(opened)
            Forwarding(opened.rules).guard_again()

    def _lay_down_again(self, opened: Opened, commands: str = "") -> None:
        self._log("network: somebody has removed the rules; they are laid down again")
        opened.rules.run(f"{self._whole(opened.block)}\n{commands}")

    def _whole(self, block: Block) -> str:
        """The table with all that is in it."""
        parts = [ruleset.table(self._name, block), ruleset.moved(self._name, block, {}, dict(self._served))]
        return "\n".join([*parts, *(ruleset.opened(self._name, block, leaving) for leaving in self._exits.values())])

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """All rules that change meanwhile change in one step at the end. If they cannot, those that are there stay:
        guests go on serving by them."""
        self._begun = []
        try:
            yield
        finally:
            commands, self._begun = "\n".join(self._begun), None
            self._try(lambda: self._run(commands))

    def _try(self, work: Callable[[], object]) -> None:
        """What cannot be removed now must not keep anything from being served."""
        with self._trying():
            work()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._log(f"network: {error}")


def forward(order: GuestOrder, rules: Nftables) -> None:
    """See that the machine forwards what this guest is sent and sends. Raises OSError."""
    forwarding = Forwarding(rules)
    forwarding.switch_on(4)
    if any(":" in endpoint.address for endpoint in order.endpoints):
        forwarding.switch_on(6)
