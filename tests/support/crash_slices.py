"""A pool with a volume of several leaves, whose deletion takes several commits; the letters of its workloads.

    base pool     that of tests.support.crash_pool, and
      d (dev 6)   2 blocks, open nowhere; its tree maps 1,000 blocks, far beyond its size, so that it has four leaves
                  though the disk is small: each 125 stand in one data block, which comes free with the last of them
      d1 (dev 7)  a snapshot of d, after which two leaves of d were changed: the other two are shared. What was mapped
                  before a snapshot may have any number of references (check: sharing by time)

    T   d1 is deleted
    U   d is deleted, which d1 forbids
    N   the same while a and b are written at each flush: they take the blocks that a slice before has freed
    L   both are deleted: their slices come one behind the other, in an order that chance decides
    O   an opening that `held_opening` has held goes on with a deletion, while a and b are written at each flush

With `one_leaf_a_slice` a commit takes one leaf. The other letters are those of tests.support.crash_workloads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.pdata.block import Words
from replicator.pdata.update import LEAF_COST
from replicator.pool import deleting, volumes
from replicator.pool.deleting import being_deleted
from replicator.pool.outcome import Outcome
from replicator.thin.change import Change
from replicator.thin.metadata import PoolMetadata
from replicator.thin.superblock import read_superblock
from tests.support.crash_disk import DATA, METADATA, CrashJournal, Image
from tests.support.crash_knowledge import sizes_of
from tests.support.crash_pool import BLOCK, LIVE, A, B, Base, CrashPool, base_pool, opened
from tests.support.crash_workloads import OPERATIONS, Operations, Player

D, D1 = 6, 7
MAPPED, BLOCKS, OWN = 1000, 8, 2


def one_leaf_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a commit deletes one leaf."""
    monkeypatch.setattr(deleting, "SLICE_COST", LEAF_COST)


@cache
def sliced_base() -> Base:
    """The pool of this module's table; only after `make_small` and `one_leaf_a_slice`."""
    base = base_pool()
    contents = dict(base.contents)
    with opened(base.image, base.views) as crash:
        pool = crash.pool
        row = volumes.create_volume(pool, "d", 2 * BLOCK)
        blocks = pool.reserve(BLOCKS + OWN)
        for number, block in enumerate(blocks.tolist()):
            crash.data.pwrite(bytes([64 + number]) * BLOCK, block * BLOCK)
        virtual = np.arange(MAPPED, dtype=np.uint64)
        _map(crash, row.dev_id, virtual, blocks[virtual * np.uint64(BLOCKS) // np.uint64(MAPPED)])
        snapshot = volumes.create_snapshot(pool, "d", "d1")
        _map(crash, row.dev_id, virtual[:: MAPPED // OWN], blocks[BLOCKS:])
        assert (row.dev_id, snapshot.dev_id) == (D, D1)
        contents |= {D: bytes([64 + BLOCKS]) * BLOCK + b"\x40" * BLOCK, D1: b"\x40" * 2 * BLOCK}
        found = {dev: crash.engine.open_device(dev, 2 * BLOCK).pread(2 * BLOCK, 0) for dev in (D, D1)}
        assert found == {dev: contents[dev] for dev in (D, D1)}
        last = pool.view().at_id
    image = base.image._replace(metadata=crash.metadata.content(), data=crash.data.content(), catalogue_id=last)
    return Base(image, crash.catalogue.views, contents, base.position)


def _map(crash: CrashPool, dev_id: int, virtual: Words, blocks: Words) -> None:
    def apply(metadata: PoolMetadata) -> Outcome:
        metadata.map(dev_id, virtual, blocks)
        return Outcome(staged=False)

    crash.engine.change(Change(apply=apply, fills=(dev_id,)))


def _delete(*dev_ids: int) -> Callable[[Player], None]:
    def delete(player: Player) -> None:
        for dev_id in dev_ids:
            player.need(dev_id)

        def act() -> None:
            if D in dev_ids:
                volumes.delete_volume(player.pool, "d", with_snapshots=D1 in dev_ids)
            else:
                volumes.delete_snapshot(player.pool, D1)
            player.pool._deletions.finish()

        player.switch(act)

    return delete


def _go_on(player: Player) -> None:
    def act() -> None:
        player.pool._deletions.go_on()
        player.pool._deletions.finish()

    player.switch(act)


def _meanwhile(delete: Callable[[Player], None]) -> Callable[[Player], None]:
    """With a write at each flush, while there is one left that needs a new block, or has its own."""

    def act(player: Player) -> None:
        places = [(A, BLOCK + 4096), (B, BLOCK + 512), (A, 3 * BLOCK), (A, 2 * BLOCK + 512), (B, 4096), (A, 4096)]

        def write(disk: str) -> None:
            if disk in (DATA, METADATA) and places and player.has_room():
                player.put(*places.pop(0), 1024)

        player.crash.journal.at_flush = write
        try:
            delete(player)
        finally:
            player.crash.journal.at_flush = lambda _: None

    return act


SLICED: Operations = {
    **OPERATIONS,
    "T": _delete(D1),
    "U": _delete(D),
    "N": _meanwhile(_delete(D)),
    "L": _delete(D, D1),
    "O": _meanwhile(_go_on),
}


def going_bases(word: str) -> list[Base]:
    """What a power cut leaves between the commits of that deletion, all flushed: pools to begin workloads with."""
    base, journal = sliced_base(), CrashJournal()
    with opened(base.image, base.views, journal=journal, live=LIVE) as crash:
        Player(crash, base, operations=SLICED).play(word)
    found: dict[bytes, Base] = {}
    for instant in journal.instants():
        metadata, data = instant.durable[METADATA], instant.durable[DATA]
        last = read_superblock(MemoryDevice(content=metadata)).transaction_id
        views = {at: view for at, view in crash.catalogue.views.items() if at <= last}
        if being_deleted(views[last]):
            contents = {dev: base.contents[dev] for dev in sizes_of(views[last])}
            found[metadata] = Base(Image(metadata, data, b"", last, "going"), views, contents, base.position)
    return list(found.values())


def held_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next opening goes on with no deletion until it is asked to by "O"; all later ones do at once."""
    held, go_on = [True], deleting.Deletions.go_on
    monkeypatch.setattr(deleting.Deletions, "go_on", lambda deletions: held.clear() if held else go_on(deletions))
