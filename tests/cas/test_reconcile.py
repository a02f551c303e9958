"""Two sets of digests are compared in few round trips, and nothing that a hostile side says does harm."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import Digest, digest_of, from_raw, to_raw
from cas.errors import ExchangeError
from cas.reconcile import MAX_LISTED, Difference, Summary, answer, reconcile


class Cost:
    def __init__(self) -> None:
        self.round_trips = 0
        self.bytes = 0


def compare(ours: Summary, ask: Callable[[bytes], bytes], cost: Cost | None = None) -> Difference:
    talk = reconcile(ours)
    cost = cost or Cost()
    questions = next(talk)
    while True:
        replies = [ask(question) for question in questions]
        cost.round_trips += 1
        cost.bytes += sum(map(len, questions)) + sum(map(len, replies))
        try:
            questions = talk.send(replies)
        except StopIteration as stop:
            found: Difference = stop.value
            return found


def between(ours: set[Digest], theirs: set[Digest], cost: Cost | None = None) -> Difference:
    other = Summary(theirs)
    return compare(Summary(ours), lambda question: answer(other, question), cost)


def many(count: int, seed: int) -> list[Digest]:
    chance = random.Random(seed)
    return [from_raw(chance.randbytes(32)) for _ in range(count)]


def named(number: int, zeros: int = 0) -> Digest:
    """A digest that begins with so many zero bytes."""
    return from_raw(bytes(zeros) + to_raw(digest_of(str(number).encode()))[zeros:])


numbered = st.sets(st.integers(0, 5000).map(lambda number: named(number)), max_size=300)
crowded = st.sets(st.integers(0, 500).map(lambda number: named(number, zeros=3)), max_size=300)


@settings(max_examples=60)
@given(numbered | crowded, numbered | crowded)
def test_exactly_what_only_one_side_has_is_found(ours: set[Digest], theirs: set[Digest]) -> None:
    found = between(ours, theirs)
    assert found.theirs == sorted(theirs - ours)
    assert found.ours == sorted(ours - theirs)


def test_equal_sets_take_one_round_trip() -> None:
    cost = Cost()
    everything = set(many(2000, 1))
    assert between(everything, everything, cost) == Difference([], [])
    assert cost.round_trips == 1
    assert cost.bytes < 1000


def test_a_million_digests_that_differ_in_a_hundred_take_four_round_trips_and_less_than_64_kb() -> None:
    everything = many(1_000_050, 2)
    cost = Cost()
    found = between(set(everything[50:]), set(everything[:1_000_000]), cost)
    assert found.theirs == sorted(everything[:50])
    assert found.ours == sorted(everything[1_000_000:])
    assert cost.round_trips <= 5
    assert cost.bytes <= 64_000


def test_lists_longer_than_one_answer_are_asked_for_in_parts() -> None:
    crowd = {from_raw(bytes(24) + number.to_bytes(8, "big")) for number in range(2 * MAX_LISTED + 10)}
    cost = Cost()
    assert between(set(), crowd, cost).theirs == sorted(crowd)
    assert cost.round_trips < 16


@settings(max_examples=200)
@given(st.binary(max_size=100), st.integers(0, 100))
def test_a_question_from_nowhere_is_answered_or_refused(noise: bytes, cut: int) -> None:
    summary = Summary(many(50, 3))
    sound = next(reconcile(summary))[0]
    for question in (noise, sound[:cut] + noise, sound[:11] + noise):
        try:
            reply = answer(summary, question)
        except ExchangeError:
            continue
        assert len(reply) < 1 << 20


@settings(max_examples=100)
@given(st.data())
def test_an_answer_from_nowhere_is_refused_or_leads_to_an_end(data: st.DataObject) -> None:
    ours, theirs = Summary(many(3000, 4)), Summary(many(3000, 5))

    def twisted(question: bytes) -> bytes:
        reply = bytearray(answer(theirs, question))
        if data.draw(st.booleans()):
            reply[data.draw(st.integers(0, min(len(reply), 60) - 1))] ^= data.draw(st.integers(1, 255))
        return bytes(reply[: data.draw(st.sampled_from([len(reply), len(reply) - 1]))])

    try:
        compare(ours, twisted)
    except ExchangeError:
        return


def test_a_side_that_never_stops_listing_is_cut_off() -> None:
    endless = Summary(many(4000, 6))
    talk = reconcile(Summary([]), max_listed=1000)
    questions = next(talk)
    with pytest.raises(ExchangeError, match="lists more than 1000"):
        for _ in range(10):
            replies = [bytearray(answer(endless, question)) for question in questions]
            for reply in replies:
                reply[6:14] = (900).to_bytes(8, "little")
            questions = talk.send([bytes(reply) for reply in replies])


def test_a_side_that_says_it_has_more_than_it_could_have_does_not_make_the_questions_endless() -> None:
    boastful = Summary(many(3000, 7))
    talk = reconcile(Summary(many(3000, 8)))
    questions = next(talk)
    reply = bytearray(answer(boastful, questions[0]))
    reply[13] = 1  # The highest byte of how many digests it has.
    with pytest.raises(ExchangeError, match="says that it has"):
        talk.send([bytes(reply)])


def test_a_side_in_which_everything_differs_for_ever_is_cut_off() -> None:
    few = Summary(many(5, 9))
    talk = reconcile(few)
    with pytest.raises(ExchangeError, match="more prefixes differ"):
        questions = next(talk)
        for _ in range(10):
            replies = [bytearray(answer(few, question)) for question in questions]
            for reply in replies:
                reply[6:14] = (100).to_bytes(8, "little")
                reply[18:] = b"\xaa" * (len(reply) - 18)
            questions = talk.send([bytes(reply) for reply in replies])


def test_the_bytes_of_a_question_and_of_its_answer_are_as_specified() -> None:
    few = Summary([from_raw(bytes([0x80] + [0] * 30 + [number])) for number in range(3)])
    question = next(reconcile(few))[0]
    assert question.hex() == "6c637271" + "10" + "00" + "07" + "01000000" + "0000000000"
    reply = answer(Summary([from_raw(bytes(range(32)))]), question)
    assert reply[:18].hex() == "6c637261" + "01" + "00" + "0100000000000000" + "01000000"
    assert reply[18:23].hex() == "0806050403"
    assert reply[23:] == bytes(127 * 5)
