"""The receive buffer of one connection: bytes of requests, parsed where they lie.

Filled from the transport, read by exporter/transmission. Requests begin at `position`, what arrived ends at `end`; an
unfinished request stays where it is until the room behind it is too small, and is then moved to the front.

Invariants
  R1  After fill there is at least one byte more than before, or the client is gone.
  R2  Nothing between `position` and `end` is overwritten.
"""

from __future__ import annotations

from replicator.exporter.transport import Transport
from replicator.nbd.protocol import REQUEST_BYTES
from replicator.units import MIB

RECEIVE_BYTES = 2 * MIB  # holds eight 256 KiB writes; only what clients fill becomes memory


class Receiving:
    """Bytes that arrived, and where the next request begins."""

    def __init__(self, transport: Transport, arrived: bytes = b"") -> None:
        assert len(arrived) <= RECEIVE_BYTES
        self.buffer = bytearray(RECEIVE_BYTES)
        self.view = memoryview(self.buffer)
        self.view[: len(arrived)] = arrived
        self.position = 0
        self.end = len(arrived)
        self._receive_into = transport.receive_into

    def fill(self, needed_bytes: int = REQUEST_BYTES) -> bool:
        """Wait for more, with room for a request of `needed_bytes`; False when the client is gone (R1)."""
        position, end = self.position, self.end
        if position == end:
            self.position = end = 0
        elif position + needed_bytes > RECEIVE_BYTES:
            left = end - position
            self.view[:left] = self.view[position:end]  # a memmove: the two may overlap
            self.position, end = 0, left
        count = self._receive_into(self.view[end:])
        self.end = end + count
        return count > 0

    def take(self, most_bytes: int) -> memoryview:
        """Up to `most_bytes` of what arrived already, to be used before the next fill."""
        begin = self.position
        self.position = min(begin + most_bytes, self.end)
        return self.view[begin : self.position]

    def receive_into(self, target: memoryview) -> int:
        """Wait for bytes that go past the buffer, once it is empty; 0 when the client is gone."""
        assert self.position == self.end
        return self._receive_into(target)
