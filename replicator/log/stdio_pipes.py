"""Standard input and output as the pipes of a server: descriptors, read and written whole.

Invariant Z1: one frame's body is in memory, in a buffer that is made once.
"""

from __future__ import annotations

import os

from replicator._buffer import Buffer
from replicator.log.stdio_protocol import BODY_BYTES_MAX

_PARTS_MAX = 512  # below every system's IOV_MAX


class DescriptorPipes:
    """Two descriptors."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._in, self._out = incoming, outgoing
        self._buffer = bytearray(BODY_BYTES_MAX)

    def read(self, length_bytes: int) -> Buffer:
        """So many bytes, valid until the next call; fewer at the end."""
        view = memoryview(self._buffer)[:length_bytes]
        have = 0
        while have < length_bytes:
            came = os.readv(self._in, [view[have:]])
            if not came:
                break
            have += came
        return view[:have]

    def write(self, parts: list[Buffer]) -> None:
        """All of these."""
        left = [memoryview(part) for part in parts if len(part)]
        while left:
            wrote = os.writev(self._out, left[:_PARTS_MAX])
            while left and wrote >= len(left[0]):
                wrote -= len(left.pop(0))
            if wrote:
                left[0] = left[0][wrote:]
