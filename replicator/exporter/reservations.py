"""Which connection has which data blocks reserved: so that none is lost with a dead client, and none given out twice.

Kept by exporter/control, over Pool.reserve and Pool.give_back. A switch that names reserved blocks takes them out of
the book first: a client that dies meanwhile gives back the rest, not what is being mapped.

    reserved      of a connection      back to the pool when it ends
    claimed       of a switch          mapped when it succeeds; else of its connection again, or back to the pool

Invariants
  R1  A block is in the book at most once; only blocks that are in it can be mapped or given back.
  R2  Of a connection that we had to cut off, nothing goes back: its client may still be writing. The pool has those
      blocks again when it is next opened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from replicator.errors import ConflictError
from replicator.pdata.block import Words
from replicator.pool.interface import Filling, Pool

_NONE: Words = np.empty(0, dtype=np.uint64)


class Reservations:
    """The book of one pool; holders are numbers, one a connection."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._turn = threading.Lock()
        self._held: dict[int, Words] = {}
        self._cut_off: set[int] = set()

    def reserve(self, holder: int, count: int) -> Words:
        """`count` blocks for `holder`; NoSpaceError."""
        blocks = self._pool.reserve(count)
        self._enter(holder, blocks)
        return blocks

    def give_back(self, holder: int, blocks: Words) -> None:
        """Blocks that the holder has and doesn't need; ConflictError with nothing given back for any others."""
        with self._turn:
            held = self._held.get(holder, _NONE)
            if not _are_in(blocks, held):
                raise ConflictError("blocks can't be given back that weren't reserved over this connection")
            self._held[holder] = np.setdiff1d(held, blocks, assume_unique=True)
        self._pool.give_back(blocks)

    @contextmanager
    def claimed(self, fillings: tuple[Filling, ...]) -> Iterator[None]:
        """Around a switch: what its fillings name is out of the book; back in it if the switch fails."""
        if not any(filling.data_blocks.size for filling in fillings):
            yield
            return
        taken = self._claim(np.concatenate([filling.data_blocks for filling in fillings]))
        try:
            yield
        except BaseException:
            for holder, blocks in taken.items():
                self._return(holder, blocks)
            raise

    def end(self, holder: int, *, cut_off: bool = False) -> None:
        """The connection is over (R2)."""
        with self._turn:
            blocks = self._held.pop(holder, _NONE)
            if cut_off:
                self._cut_off.add(holder)
        if blocks.size and not cut_off:
            self._pool.give_back(blocks)

    def begin(self, holder: int) -> None:
        """A connection begins."""
        with self._turn:
            self._held[holder] = _NONE

    def _enter(self, holder: int, blocks: Words) -> None:
        with self._turn:
            self._held[holder] = np.union1d(self._held[holder], blocks)

    def _claim(self, blocks: Words) -> dict[int, Words]:
        with self._turn:
            taken = {holder: np.intersect1d(held, blocks) for holder, held in self._held.items() if held.size}
            if sum(part.size for part in taken.values()) != len(blocks):
                raise ConflictError("a filling names data blocks that weren't reserved, or one twice")
            for holder, part in taken.items():
                if part.size:
                    self._held[holder] = np.setdiff1d(self._held[holder], part, assume_unique=True)
        return {holder: part for holder, part in taken.items() if part.size}

    def _return(self, holder: int, blocks: Words) -> None:
        """A switch failed: its blocks are the connection's again, if that is still there (R2)."""
        with self._turn:
            if holder in self._held:
                self._held[holder] = np.union1d(self._held[holder], blocks)
                return
            if holder in self._cut_off:
                return
        self._pool.give_back(blocks)


def _are_in(blocks: Words, held: Words) -> bool:
    return len(np.unique(blocks)) == len(blocks) and bool(np.isin(blocks, held).all())
