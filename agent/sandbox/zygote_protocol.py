"""What supervisor and zygote say to each other (see `agent.sandbox.zygote`), where neither has to import the other."""

from __future__ import annotations

from typing import Final

FORK: Final = b"fork"
"""With three descriptors: the order, the writing end of the output pipe, the guest's control socket."""
READY: Final = b"ready"
UNFIT: Final = b"unfit: "
MAX_CHANNEL_BYTES: Final = 8192
