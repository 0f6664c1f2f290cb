"""Mappings as runs: consecutive virtual blocks that lie on consecutive data blocks and have one time.

Between thin/view and those that want few large pieces instead of many entries: dump, readers of data, NBD's block
status. Pieces of a device come one behind the other; a run that goes on in the next piece is held back and joined.

Invariants
  R1  Runs are maximal: no two neighbouring runs of one device could be one.
  R2  Memory is bounded by the largest piece that comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from replicator.thin.mapping import Packed, data_blocks, times

_NEXT_DATA_BLOCK = np.uint64(1 << 24)
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True)
class MappedRuns:
    """Runs of one device, ascending by virtual block; four u64 arrays of one length."""

    virtual_begin: Packed
    data_begin: Packed
    length_blocks: Packed
    time: Packed

    def __len__(self) -> int:
        return len(self.virtual_begin)


def join_runs(pieces: Iterable[tuple[Packed, Packed]]) -> Iterator[MappedRuns]:
    """Maximal runs of the ascending (virtual blocks, mapping values) in `pieces`."""
    held: tuple[Packed, Packed, Packed] | None = None
    for keys, values in pieces:
        if not len(keys):
            continue
        begins, firsts, lengths = _runs_of_piece(keys, values)
        if held is not None:
            begins, firsts, lengths = _join(held, (begins, firsts, lengths))
        held = begins[-1:], firsts[-1:], lengths[-1:]
        if len(begins) > 1:
            yield _as_runs(begins[:-1], firsts[:-1], lengths[:-1])
    if held is not None:
        yield _as_runs(*held)


def _runs_of_piece(keys: Packed, values: Packed) -> tuple[Packed, Packed, Packed]:
    breaks = (keys[1:] != keys[:-1] + _ONE) | (values[1:] != values[:-1] + _NEXT_DATA_BLOCK)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lengths = np.diff(starts, append=len(keys)).astype(np.uint64)
    return keys[starts], values[starts], lengths


def _join(held: tuple[Packed, Packed, Packed], piece: tuple[Packed, Packed, Packed]) -> tuple[Packed, Packed, Packed]:
    """The held-back run before the runs of the next piece, as one where they touch."""
    begins, firsts, lengths = (np.concatenate((old, new)) for old, new in zip(held, piece, strict=True))
    touches = begins[0] + lengths[0] == begins[1] and firsts[0] + lengths[0] * _NEXT_DATA_BLOCK == firsts[1]
    if not touches:
        return begins, firsts, lengths
    lengths[1] += lengths[0]
    begins[1], firsts[1] = begins[0], firsts[0]
    return begins[1:], firsts[1:], lengths[1:]


def _as_runs(begins: Packed, firsts: Packed, lengths: Packed) -> MappedRuns:
    return MappedRuns(begins, data_blocks(firsts), lengths, times(firsts))
