"""Rules of the kernel's packet filter, given to it by libnftables: one transaction for each call, in this process.

The library is what the `nft` command consists of; the command itself would take 18 ms each time, a call takes 0.1 ms.
"""

from __future__ import annotations

import ctypes
from typing import Final

LIBRARY: Final = "libnftables.so.1"


class RulesRefused(OSError):
    """The kernel or the library did not take the rules; nothing of them holds."""


class Nftables:
    """The packet filter of the network namespace that this thread is in when it is made. Raises OSError where the
    library is not installed."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise OSError("libnftables has no memory")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, commands: str) -> str:
        """All of the commands or none; what they print. Raises RulesRefused."""
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        said: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        printed: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        if failed:
            raise RulesRefused(f"nftables: {said.decode(errors='replace').strip()[:1000]}")
        return printed.decode(errors="replace")

    def tables(self) -> list[str]:
        """Names of the tables of the family `inet`."""
        lines = (line.split() for line in self.run("list tables inet").splitlines())
        return [words[2] for words in lines if len(words) == 3]

    def close(self) -> None:
        self._library.nft_ctx_free(self._context)
