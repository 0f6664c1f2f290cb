"""Block status: runs of (length, flags) to the chunks that answer a BLOCK_STATUS request.

    0    4    context id
    4    8n   n descriptors: length (4, not 0), status flags (4)

behind the header of a structured reply chunk of type BLOCK_STATUS; one chunk for each selected context, the last
with DONE. The descriptors are consecutive, from the request's offset on.

Invariants
  E1  Descriptors sum up to at most the request's length, and at least one is there.
  E2  Neighbours differ in their flags; a run longer than the request is cut.
  E3  With REQ_ONE there is one descriptor, otherwise at most MAX_EXTENTS: a client asks again from where they end.
      Runs are taken from their source only as far as needed, so that a source may be lazy and endless.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from replicator.nbd import protocol as p
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.reply import CHUNK, chunk_head

Extents: TypeAlias = list[tuple[int, int]]
"""(length_bytes, flags), consecutive."""

_CONTEXT = struct.Struct("!I")
_DESCRIPTOR = struct.Struct("!II")


def merge_extents(runs: Iterable[tuple[int, int]], length: int, most: int = p.MAX_EXTENTS) -> Extents:
    """At most `most` descriptors of the first `length` bytes of `runs`: merged, cut, none empty (E1 to E3)."""
    extents: Extents = []
    left = length
    current_length = current_flags = 0
    for run_length, flags in runs:
        taken = min(run_length, left)
        if taken <= 0:
            if left == 0:
                break
            continue
        if current_length and flags != current_flags:
            extents.append((current_length, current_flags))
            current_length = 0
            if len(extents) == most:
                break
        current_length, current_flags = current_length + taken, flags
        left -= taken
    if current_length:
        extents.append((current_length, current_flags))
    return extents


def pack_block_status(
    cookie: int, answers: Sequence[tuple[int, Iterable[tuple[int, int]]]], length: int, *, one: bool
) -> bytes:
    """The whole reply to a BLOCK_STATUS of `length` bytes: `answers` are (context id, runs), `one` is its REQ_ONE."""
    chunks = []
    for number, (context_id, runs) in enumerate(answers, 1):
        extents = merge_extents(runs, length, 1 if one else p.MAX_EXTENTS)
        assert extents, "E1: runs must cover the beginning of the request"
        payload = _CONTEXT.pack(context_id) + b"".join(_DESCRIPTOR.pack(*extent) for extent in extents)
        head = chunk_head(p.REPLY_BLOCK_STATUS, number == len(answers))
        chunks.append(CHUNK.pack(head, cookie, len(payload)) + payload)
    return b"".join(chunks)


def unpack_block_status(payload: bytes, length: int) -> tuple[int, Extents]:
    """(context id, extents) of a chunk's payload; NbdFormatError unless they answer a request of `length` bytes.

    The last descriptor may reach beyond the request, as the specification allows; it is cut.
    """
    if len(payload) < _CONTEXT.size + _DESCRIPTOR.size or (len(payload) - _CONTEXT.size) % _DESCRIPTOR.size:
        raise NbdFormatError("NBD block status", "4 + 8n bytes", f"{len(payload)}")
    (context_id,) = _CONTEXT.unpack_from(payload)
    extents: Extents = []
    left = length
    for run_length, flags in _DESCRIPTOR.iter_unpack(payload[_CONTEXT.size :]):
        if run_length == 0 or left == 0:
            raise NbdFormatError("NBD block status", f"descriptors of {length} bytes in all", f"{run_length} more")
        extents.append((min(run_length, left), flags))
        left -= extents[-1][0]
    return context_id, extents
