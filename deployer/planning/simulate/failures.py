"""What can go wrong in a simulation, and how a seed decides what does.

    host-down[=HOST]             the host answers nothing from some moment on; by the seed's whim it comes back later
    slow-link[=HOST]             its link has a hundredth of the rate and fifty times the round trip
    never-ready[=NAME[@HOST]]    what the plan starts there never gets ready
    dies-later[=NAME[@HOST]]     it gets ready, serves a while, and then ends again and again

What a person leaves open, the seed decides; the same seed decides the same.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import msgspec

from deployer.errors import BadInput
from deployer.planning.plan import Plan

T = TypeVar("T")

MOST_AT_ONCE: Final = 3
"""So many failures a seed alone brings at most."""
BACK_AFTER_S: Final = (5.0, 60.0)
DIES_AFTER_S: Final = (1.0, 90.0)


class FailureKind(enum.StrEnum):
    HOST_DOWN = "host-down"
    SLOW_LINK = "slow-link"
    NEVER_READY = "never-ready"
    DIES_LATER = "dies-later"


OF_A_HOST: Final = (FailureKind.HOST_DOWN, FailureKind.SLOW_LINK)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong."""

    kind: FailureKind
    host: str
    process: str = ""
    """Empty where the host is what fails."""
    at_s: float = 0.0
    """Of `host-down`: since the simulation began; of `dies-later`: after the guest got ready."""
    until_s: float | None = None
    """When a host that was down is back; None: never."""

    def __str__(self) -> str:
        where = f"{self.process}@{self.host}" if self.process else self.host
        match self.kind:
            case FailureKind.HOST_DOWN:
                back = "" if self.until_s is None else f" to {self.until_s:.1f} s"
                return f"{self.kind} {where}, from {self.at_s:.1f} s{back}"
            case FailureKind.DIES_LATER:
                return f"{self.kind} {where}, after {self.at_s:.1f} s"
        return f"{self.kind} {where}"


def draw(plan: Plan, wanted: Iterable[str], *, seed: int | None, length_s: float) -> tuple[Failure, ...]:
    """The failures of one simulation. `wanted`: as `--fail` has them; where there are none, a seed brings some of its
    own. `length_s`: how long the plan takes when all goes well. Raises BadInput for what the plan does not call."""
    texts = list(wanted)
    if not texts and (seed is None or plan.is_empty):
        return ()
    chance = random.Random(seed or 0)
    if not texts:
        starts = any(step.spec is not None for step in plan.steps())
        texts = chance.choices(tuple(FailureKind) if starts else OF_A_HOST, k=chance.randint(1, MOST_AT_ONCE))
    return tuple(_one(plan, text, chance, length_s) for text in texts)


def _one(plan: Plan, text: str, chance: random.Random, length_s: float) -> Failure:
    name, _, where = text.partition("=")
    try:
        kind = FailureKind(name)
    except ValueError:
        raise BadInput(f"{name!r} is no failure", hint=f"there are: {', '.join(FailureKind)}") from None
    if kind in OF_A_HOST:
        host = _chosen(plan.hosts(), lambda host: where in ("", host), chance, where)
        if kind is FailureKind.SLOW_LINK:
            return Failure(kind=kind, host=host)
        at_s = round(chance.uniform(0, length_s), 3)
        until_s = round(at_s + chance.uniform(*BACK_AFTER_S), 3) if chance.random() < 0.5 else None
        return Failure(kind=kind, host=host, at_s=at_s, until_s=until_s)
    process, _, on = where.partition("@")
    places = sorted({(step.host, step.subject) for step in plan.steps() if step.spec is not None})
    host, process = _chosen(places, lambda at: process in ("", at[1]) and on in ("", at[0]), chance, where)
    at_s = round(chance.uniform(*DIES_AFTER_S), 3) if kind is FailureKind.DIES_LATER else 0.0
    return Failure(kind=kind, host=host, process=process, at_s=at_s)


def _chosen(places: Iterable[T], fits: Callable[[T], bool], chance: random.Random, where: str) -> T:
    found = [place for place in places if fits(place)]
    if not found:
        raise BadInput(f"the plan starts or calls nothing at {where or 'any process'}", hint="see `lowcloud plan`")
    return chance.choice(found)
