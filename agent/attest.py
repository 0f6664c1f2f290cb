"""Hashes of a whole volume at a cut (VolumeAttested), so that a replica which drifted is found; read beside the rounds.

Asked by attesting, in a thread of its own, since a terabyte takes a while; what comes out is appended between two
transactions. The cut carries a label, so that receivers keep its point until they have compared.

    span      chunks from 256 on, so many that a volume has at most 65,536 spans
    digest    xxh3-128 of the xxh3-128 of each chunk of the span, one behind the other; a short last chunk is padded

Invariants
  A1  What was read counts only if the lease stood to the end (delta, D3): else nothing is attested.
  A2  Memory: the hashes, at most a mebibyte, and one read.
  A3  What is read is the snapshot that was looked at, or nothing: its dev_id may be another's by then (pool/leasing).

Failures: those of delta; NotFoundError when the snapshot went meanwhile; StoppedError.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import xxhash

from agent.context import Context
from agent.delta import Delta, State
from agent.transmit import StoppedError
from replicator.events.bodies import ATTESTED_SPANS_MAX, VolumeAttested
from replicator.events.digests import digest128
from replicator.events.values import StateName, chunk_count_of
from replicator.pool.catalogue_schema import Snapshot, Volume
from replicator.pool.leasing import leased_rows
from replicator.units import CHUNK_BYTES

SPAN_CHUNKS_MIN = 256
_READ_CHUNKS = 64
_ZEROS_AT_ONCE = 1 << 16  # hashes of zero chunks fed at once
_ZERO_HASH = digest128(bytes(CHUNK_BYTES))


def span_chunks_of(chunk_count: int) -> int:
    """Chunks of a span."""
    return max(SPAN_CHUNKS_MIN, -(-chunk_count // ATTESTED_SPANS_MAX))


def attested(
    context: Context, volume: Volume, snapshot: Snapshot, point: StateName, stopping: Callable[[], bool]
) -> VolumeAttested:
    """What `snapshot`, which equals `point`, reads."""
    spans = _Spans(chunk_count_of(snapshot.size_bytes))
    rows = np.empty((_READ_CHUNKS, CHUNK_BYTES), dtype=np.uint8)
    pool = context.pool()
    with ExitStack() as stack:
        lease = stack.enter_context(leased_rows(pool, [snapshot]))
        files = stack.enter_context(context.files(pool))
        origin = stack.enter_context(context.origin(volume.origin)) if volume.origin else None
        state = State(lease.devices[snapshot.dev_id].root, snapshot.size_bytes)
        delta = Delta(files, None, state, origin=origin, stands=lambda: lease.stands)
        for part in delta.kept(0, _READ_CHUNKS):
            if stopping():
                raise StoppedError("stopped while the volume was read for its attestation")
            delta.read_target(part, rows[: len(part)])
            for row, chunk in enumerate(part.chunks.tolist()):
                spans.zeros(chunk)
                spans.add(digest128(rows[row].data))
    spans.zeros(spans.chunk_count)
    return VolumeAttested(point, snapshot.size_bytes, spans.span_chunks, bytes(spans.digests))


class _Spans:
    """The digests of spans, fed chunk by chunk in order."""

    def __init__(self, chunk_count: int) -> None:
        self.chunk_count, self.span_chunks = chunk_count, span_chunks_of(chunk_count)
        self.digests = bytearray()
        self._chunk = 0
        self._hash = xxhash.xxh3_128()

    def add(self, digest: bytes) -> None:
        """One chunk's hash."""
        self._feed(digest, 1)

    def zeros(self, until: int) -> None:
        """Chunks of zeros up to `until`."""
        while self._chunk < until:
            in_span = self.span_chunks - self._chunk % self.span_chunks
            count = min(until - self._chunk, in_span, _ZEROS_AT_ONCE)
            self._feed(_ZERO_HASH * count, count)

    def _feed(self, hashes: bytes, count: int) -> None:
        self._hash.update(hashes)
        self._chunk += count
        if self._chunk % self.span_chunks == 0 or self._chunk == self.chunk_count:
            self.digests += self._hash.digest()
            self._hash = xxhash.xxh3_128()
