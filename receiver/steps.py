"""A step's Filling, cut into parts that one switch each can take.

Between draft and apply. The parts of a step go into a staging snapshot one after the other: done twice, they leave the
same mappings, so a death between two of them costs nothing but the work.

Invariants
  C1  The parts, one after the other, do what the whole does: ranges are unmapped before anything is mapped.
"""

from __future__ import annotations

from replicator.pool.interface import Filling


def parts_of(filling: Filling, limit: int) -> list[Filling]:
    """`filling` in parts of at most `limit` mapping changes, a range counting as two; at least one part."""
    ranges = max(1, limit // 2)
    if len(filling.virtual_blocks) + 2 * len(filling.unmapped) <= limit:
        return [filling]
    unmapping = [
        Filling(filling.dev_id, unmapped=filling.unmapped[begin : begin + ranges])
        for begin in range(0, len(filling.unmapped), ranges)
    ]
    mapping = [
        Filling(
            filling.dev_id, filling.virtual_blocks[begin : begin + limit], filling.data_blocks[begin : begin + limit]
        )
        for begin in range(0, len(filling.virtual_blocks), limit)
    ]
    return unmapping + mapping
