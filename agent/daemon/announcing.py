"""Announcing in the journal what a call that is on no process is about to do, and noting where it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent.api.journal import Event
from agent.daemon.journal import Facts, Journal, JournalUnwritable
from agent.daemon.refusal import Refused


@asynccontextmanager
async def announced_on_host(journal: Journal, facts: Facts) -> AsyncIterator[None]:
    """Announce a call; a failure inside is noted. Raises JournalUnwritable."""
    await asyncio.to_thread(lambda: journal.append(Event.CALL, **facts))
    try:
        yield
    except Exception as error:
        failed: Facts = {**facts, "detail": f"{facts['detail']}: {told(error)}"}
        with suppress(JournalUnwritable):
            await asyncio.to_thread(lambda: journal.append(Event.CALL_FAILED, **failed))
        raise


def told(error: Exception) -> str:
    """What the journal says of an error."""
    return str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
