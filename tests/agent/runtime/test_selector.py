"""The order of a group of SO_REUSEPORT sockets, held against the kernel's own."""

from __future__ import annotations

import select
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.sandbox.bpf import Op, assemble, give, if_equal, load
from agent.supervisor.selector import Order, Steer, attach, selector_program
from tests.agent.runtime.support import DEADLINE_S
from tests.ports import free_port

STEPS = st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 7)), min_size=1, max_size=10)


def listener(port: int) -> socket.socket:
    fresh = socket.socket()
    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    fresh.bind(("127.0.0.1", port))
    fresh.listen()
    fresh.setblocking(False)
    return fresh


def who_gets_a_connection(members: list[socket.socket], source: tuple[str, int] | None = None) -> socket.socket:
    with socket.create_connection(members[0].getsockname(), DEADLINE_S, source):
        # The client's side may be there a moment before the server's.
        ready, _, _ = select.select(members, [], [], DEADLINE_S)
        (member,) = ready
        member.accept()[0].close()
        return member


@settings(max_examples=25)
@given(STEPS)
def test_the_order_is_the_kernels_after_any_joins_and_leaves(steps: list[tuple[str, int]]) -> None:
    first = listener(0)
    port = first.getsockname()[1]
    order: Order[socket.socket] = Order()
    order.join(first)
    try:
        for what, which in steps:
            if what == "join":
                fresh = listener(port)
                order.join(fresh)
            elif len(order) > 1:
                gone = order.members[which % len(order)]
                order.leave(gone)
                gone.close()
            for index, member in enumerate(order.members):
                attach(member, selector_program(socket.AF_INET, index))
                assert who_gets_a_connection(order.members) is member
    finally:
        for member in order.members:
            member.close()


def test_a_steered_source_reaches_the_other_socket_and_nobody_else_does() -> None:
    serving = listener(0)
    dark = listener(serving.getsockname()[1])
    port = free_port()
    with serving, dark:
        attach(serving, selector_program(socket.AF_INET, 0, [Steer("127.0.0.1", port, 1)]))
        members = [serving, dark]
        assert who_gets_a_connection(members, ("127.0.0.1", port)) is dark
        assert who_gets_a_connection(members) is serving
        assert who_gets_a_connection(members, ("127.0.0.2", 0)) is serving


def test_a_member_may_leave_only_if_the_serving_ones_place_stays() -> None:
    order: Order[str] = Order()
    for name in ("old", "serving", "dark"):
        order.join(name)
    assert order.may_leave("old", "serving")
    assert not order.may_leave("serving", "serving")
    assert not order.may_leave("old", "dark")
    order.leave("old")
    assert order.members == ["dark", "serving"]
    assert order.may_leave("dark", "serving")


def test_a_jump_that_cannot_be_made_is_refused_when_assembling() -> None:
    with pytest.raises(ValueError, match="no label 'nowhere'"):
        assemble([if_equal(1, "nowhere"), give(0)])
    with pytest.raises(ValueError, match="within 255"):
        assemble([if_equal(1, "far"), *[load(0)] * 300, give(0, label="far")])
    with pytest.raises(ValueError, match="more than the kernel takes"):
        assemble([Op(6, 0)] * 5000)
