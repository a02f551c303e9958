"""Connections that are being made: how long one may take with its greeting, whether any is under way, and how long the
last one took.

A greeting (TCP, then TLS with two certificates) is about 5 KB. Over a line of 20 kbit/s three at once take 6 s, and
until they are over nobody can have said anything.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Final

import aiohttp

SLOW_S: Final = 2.0
"""A greeting that takes so long comes over a line that is thin or full, however far the other end is."""


class Greetings:
    """Of one party to any number of others. Use from one event loop."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        """What one may take."""
        self.under_way = 0
        self.are_slow = False
        """Whether the last one was."""

    def watched(self) -> aiohttp.TraceConfig:
        """For a session whose connections belong to it."""
        config = aiohttp.TraceConfig()
        config.on_connection_create_start.append(self._begin)
        config.on_connection_create_end.append(self._end)
        config.on_request_exception.append(self._end)
        return config

    async def _begin(self, _: aiohttp.ClientSession, request: SimpleNamespace, __: Any) -> None:
        request.greets_since_s = asyncio.get_running_loop().time()
        self.under_way += 1

    async def _end(self, _: aiohttp.ClientSession, request: SimpleNamespace, __: Any) -> None:
        since_s = getattr(request, "greets_since_s", None)
        if since_s is not None:
            request.greets_since_s = None
            self.under_way -= 1
            self.are_slow = asyncio.get_running_loop().time() - since_s >= SLOW_S
