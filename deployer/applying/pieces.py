"""Sending large blobs piece by piece, so that the host that gets them hands on what it has while the rest arrives.

The host has the inventory and checks each piece by it. What of a form is there already, from a try that was cut off or
from neighbours, is asked for first and not sent again. Everything else goes in streams as ever
(`deployer.applying.transfer`): what is small, and what the inventory does not list; before the pieces, or after them
where it is built on one of them. An agent that does not know pieces, or finds that one is not what the inventory says,
is sent streams only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from msgspec import UNSET

from agent.api.answers import Reason
from agent.api.blobs import BlobReceipt
from agent.api.fetching import FormAsked, HaveQuery, PartAsked, PiecesOffer
from agent.client.client import AgentClient
from agent.client.errors import BadAnswer, CallRefused, refused_because
from cas.digest import Digest
from cas.inventory import Form, Item
from cas.manifest import PIECE_BYTES, pieces_in
from cas.routes import Step
from cas.swarm.messages import everything, pack_pieces, unpack_pieces
from deployer.applying.transfer import Lack, Meter, Source, send_stream

FORMS_AT_ONCE: Final = 512
TOGETHER_BYTES: Final = 1 << 20
"""What comes before pieces and has about so many bytes goes in one body with them; what has more, in a stream."""
RUNS_OF_EACH: Final = 2
"""A form with more gaps than that is sent from its first gap to its last; so an offer has few parts."""
_NOT_SO: Final = (Reason.NOT_FOUND, Reason.BAD_REQUEST, Reason.BAD_BLOB, Reason.MISSING_BLOBS)
"""Refusals of pieces after which streams may still be taken."""


class Parcels(NamedTuple):
    """What goes how, in this order."""

    before: tuple[Digest, ...]
    forms: tuple[tuple[Digest, Form], ...]
    """Blobs, and the forms in which they go piece by piece."""
    after: tuple[Digest, ...]


def split(steps: Iterable[Step], items: Mapping[Digest, Item]) -> Parcels:
    """Which of these steps can go piece by piece, and which must wait for them."""
    before: list[Digest] = []
    forms: dict[Digest, Form] = {}
    after: dict[Digest, None] = {}
    for step in steps:
        blob = step.stat.digest
        form = _form_of(step, items)
        if form is not None and step.base not in after:
            forms[blob] = form
        elif step.base is not None and (step.base in after or step.base in forms):
            after[blob] = None
        else:
            before.append(blob)
    return Parcels(tuple(before), tuple(forms.items()), tuple(after))


class ByPieces:
    """A way to send (`transfer.Send`) to hosts that have this inventory."""

    def __init__(self, inventory: Digest, items: Mapping[Digest, Item]) -> None:
        self._inventory = inventory
        self._items = items

    def checks(self, source: Source, lack: Lack) -> tuple[Digest, ...]:
        """What a host must have to check the pieces that `send` would send it: the inventory and manifests, or nothing.
        Blocks. Raises CasError."""
        if not lack.missing:
            return ()
        source.freshen(lack)
        forms = split(source.steps(lack), self._items).forms
        return (self._inventory, *sorted({form.manifest for _, form in forms if form.manifest})) if forms else ()

    async def send(self, source: Source, client: AgentClient, lack: Lack, meter: Meter) -> BlobReceipt:
        """To a host that has what `checks` says. Raises AgentError, CasError."""
        parcels = split(await asyncio.to_thread(source.steps, lack), self._items)
        if not parcels.forms:
            return await send_stream(source, client, lack, meter)
        receipts = []
        held = lack.bases
        before = Lack(parcels.before, held)
        together = lack.arriving is not None and await asyncio.to_thread(source.cost, before) <= TOGETHER_BYTES
        if before.missing and not together:
            receipts.append(await send_stream(source, client, before, meter))
            held, before = held + parcels.before, Lack((), held)
        rest = parcels.after
        try:
            for first in range(0, len(parcels.forms), FORMS_AT_ONCE):
                forms = parcels.forms[first : first + FORMS_AT_ONCE]
                receipts += [await self._give(source, client, forms, meter, lack.arriving, before)]
                held, before = held + before.missing, Lack((), held)
            held += tuple(blob for blob, _ in parcels.forms)
        except CallRefused as error:
            if not refused_because(error, *_NOT_SO):
                raise
            rest = before.missing + tuple(blob for blob, _ in parcels.forms) + rest
        if rest:
            receipts.append(await send_stream(source, client, Lack(rest, held), meter))
        return _sum(receipts)

    async def _give(
        self,
        source: Source,
        client: AgentClient,
        forms: tuple[tuple[Digest, Form], ...],
        meter: Meter,
        arriving: tuple[Digest, ...] | None,
        before: Lack,
    ) -> BlobReceipt:
        """`arriving`: as in `Lack`; `before`: what comes before the pieces, in the same body."""
        if arriving is None or {form.digest for _, form in forms} & {*arriving}:
            lacking = await _lacking(client, forms)
        else:
            lacking = [everything(pieces_in(form.size)) for _, form in forms]
        parts = tuple(
            PartAsked(place, first, count) for place, pieces in enumerate(lacking) for first, count in _runs(pieces)
        )
        pieces = (
            piece
            for (blob, form), wanted in zip(forms, lacking, strict=True)
            for piece in (source.pieces(blob, form, wanted) if wanted else ())
        )
        frames = await asyncio.to_thread(lambda: list(source.frames(before)) if before.missing else [])
        before_bytes = sum(map(len, frames)) if frames else UNSET
        offer = PiecesOffer(self._inventory, tuple(form.digest for _, form in forms), parts, before_bytes)
        receipt = await client.give_pieces(offer, meter.metered(itertools.chain(frames, pieces)))
        given = len(before.missing) + len(forms)
        if receipt.blobs < given:
            raise BadAnswer(f"{client.host_name} made {receipt.blobs} blobs of {given} that it was given whole")
        return receipt


async def _lacking(client: AgentClient, forms: tuple[tuple[Digest, Form], ...]) -> list[int]:
    """The pieces of each form that the host has not got, as sets of few runs. Raises AgentError."""
    counts = [pieces_in(form.size) for _, form in forms]
    asked = tuple(FormAsked(form.digest, blob, form.size, form.encoding, form.base) for blob, form in forms)
    answer = await client.have(HaveQuery(asked, tuple(pack_pieces(0, count) for count in counts)))
    found = []
    for place, count in enumerate(counts):
        try:
            held = unpack_pieces(answer.holdings.get(place, pack_pieces(0, count)), count)
        except ValueError as error:
            raise BadAnswer(f"{client.host_name} tells of pieces that there are not: {error}") from error
        found.append(_in_few_runs(everything(count) & ~held))
    return found


def _in_few_runs(pieces: int) -> int:
    runs = list(_runs(pieces))
    if len(runs) <= RUNS_OF_EACH:
        return pieces
    first, end = runs[0][0], sum(runs[-1])
    return everything(end - first) << first


def _runs(pieces: int) -> Iterator[tuple[int, int]]:
    """First piece and number of consecutive ones."""
    while pieces:
        first = (pieces & -pieces).bit_length() - 1
        onward = pieces >> first
        count = (~onward & onward + 1).bit_length() - 1
        yield first, count
        pieces &= ~(everything(count) << first)


def _form_of(step: Step, items: Mapping[Digest, Item]) -> Form | None:
    """The form, of several pieces, that a step sends; None where there is none such."""
    item = items.get(step.stat.digest)
    if item is None:
        return None
    encoding = step.stat.encoding if step.base is None else "delta"
    fits = [
        form
        for form in (item.whole, *item.others)
        if (form.encoding, form.base) == (encoding, step.base) and form.size > PIECE_BYTES
    ]
    return fits[0] if fits else None


def _sum(receipts: Iterable[BlobReceipt]) -> BlobReceipt:
    blobs = wire_bytes = raw_bytes = 0
    for one in receipts:
        blobs, wire_bytes, raw_bytes = blobs + one.blobs, wire_bytes + one.wire_bytes, raw_bytes + one.raw_bytes
    return BlobReceipt(blobs, wire_bytes, raw_bytes)
