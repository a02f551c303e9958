"""Deltas: bytes in, bytes out. A patch rebuilds a target from a base; nothing here reads or writes anything."""

from __future__ import annotations

from delta.codec import decode, encode
from delta.container import MAX_INPUT_BYTES, PatchInfo, inspect
from delta.errors import DeltaError
from delta.zstd import Effort

__all__ = ["encode", "decode", "inspect", "PatchInfo", "DeltaError", "Effort", "MAX_INPUT_BYTES"]
