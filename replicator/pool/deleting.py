"""Thin devices that are being deleted: out of every list at once, their space back slice by slice, nobody held up.

Between pool/applying, which hides a device when a switch deletes it, and the engine's commits. A device that costs
little dies in the switch itself. Another gets a mark in the catalogue, in that switch, and then loses its first
mappings at each of the commits that follow, each within BEHIND_COST; what is left of it is a whole thin device, with
its mapped_blocks right, that nobody can name. Other changes come between the slices.

    dies …                          on disk                                    next opening
    before the switch               the device, in its lists                   nothing to do
    after the switch                the whole device, and its mark             goes on
    after a slice                   a device with fewer mappings, its mark     goes on
    after the last slice            neither device nor mark: one switch        nothing to do

A slice that isn't the last leaves the transaction id as it is: nothing of the catalogue changes.

Invariants
  B1  A marked device is neither listed, leased, opened, shared nor filled, and its dev_id isn't given again.
  B2  Blocks that a slice frees are used again after its commit only, as all others (P6).
  B3  A slice that is refused (no room) or fails isn't tried again before the next switch, or opening.
  B4  Between two slices one is always under way, so that `finish` ends behind the last one, which the view shows.
  B5  What waits for a commit of its own goes before the next slice, up to OVERTAKEN of them in a row (thin/change), and
      waits for one slice at most. Where nobody else is left (`finish` as the pool is being closed), slices are large.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from replicator.errors import ReplicatorError
from replicator.pdata.room import UNMAP_WEIGHT
from replicator.pdata.update import LEAF_COST
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import End, Put
from replicator.pool.outcome import Outcome
from replicator.pool.view import CatalogueView
from replicator.thin.change import Change
from replicator.thin.metadata import PoolMetadata

SLICE_COST = 384 * LEAF_COST  # dies in the switch: 97 thousand mappings that nobody shares, some 50 ms of work
BEHIND_COST = 32 * LEAF_COST  # dies in a commit that others wait for: no more work than a cut is
_MARK = "deleting-"

_log = logging.getLogger(__name__)


def being_deleted(view: CatalogueView) -> dict[int, int]:
    """The marked devices, and how many blocks each had mapped when it was deleted."""
    marks = (each for each in view.settings if each.name.startswith(_MARK))
    return {int(each.name.removeprefix(_MARK)): int(each.value) for each in marks}


def is_going(dev_id: int, metadata: PoolMetadata, view: CatalogueView) -> bool:
    """Whether a device isn't there, or is deleted by the commit under way: `view` is the one to come (B1)."""
    return metadata.find(dev_id) is None or dev_id in being_deleted(view)


def hide(dev_id: int, mapped_blocks: int) -> Put:
    """The row that marks a device."""
    return Put(Setting(f"{_MARK}{dev_id}", str(mapped_blocks)))


def delete_some(metadata: PoolMetadata, dev_ids: tuple[int, ...]) -> tuple[list[Put], tuple[int, ...]]:
    """Delete what is cheap enough for one commit: the marks of the others, and those that are gone."""
    marks: list[Put] = []
    gone: list[int] = []
    budget = SLICE_COST
    for dev_id in dev_ids:
        cost = metadata.deletion_cost(dev_id, budget)
        if cost > budget:
            marks.append(hide(dev_id, metadata.device(dev_id).mapped_blocks))
        else:
            metadata.delete(dev_id)
            gone.append(dev_id)
            budget -= cost
    return marks, tuple(gone)


class Deletions:
    """The slices of one pool: at most one of them waits for its commit, or is in one."""

    def __init__(self, submit: Callable[[Change], None], view: Callable[[], CatalogueView]) -> None:
        self._submit, self._view = submit, view
        self._changed = threading.Condition()
        self._under_way = False
        self._alone = False

    def go_on(self) -> None:
        """Hand in the next slice, if there is one to do and none under way."""
        with self._changed:
            if not self._under_way:
                self._hand_in()

    def _hand_in(self) -> None:
        """The next slice, or none: then nothing is under way any more. With `_changed` held."""
        dev_id = min(being_deleted(self._view()), default=None)
        self._under_way = dev_id is not None
        if dev_id is None:
            self._changed.notify_all()
            return
        change = Change(apply=partial(_slice, dev_id, alone=self._alone), deletes=True, weight=UNMAP_WEIGHT, waits=True)
        change.done.add_done_callback(self._done)
        try:
            self._submit(change)
        except ReplicatorError:  # the pool is being closed: the next opening goes on
            self._rest()

    def _done(self, done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            _log.warning("a deletion waits for the next change: %s", error)
            self._rest()
            return
        with self._changed:
            self._hand_in()  # without a rest between: who waits for the end waits for the last slice (B4)

    def _rest(self) -> None:
        with self._changed:
            self._under_way = False
            self._changed.notify_all()

    def finish(self, *, alone: bool = False) -> None:
        """Wait until no slice is under way: all is deleted, or can't be now (B3); `alone`: nobody else waits (B5)."""
        with self._changed:
            self._alone |= alone
            while self._under_way:
                self._changed.wait()


def _slice(dev_id: int, metadata: PoolMetadata, *, alone: bool = False) -> Outcome:
    cost = SLICE_COST if alone else min(SLICE_COST, BEHIND_COST)
    there = metadata.find(dev_id) is not None  # another engine may have deleted it since
    if there and not metadata.shrink_dying(dev_id, cost):
        return Outcome(staged=False)
    return Outcome([End(Setting, (f"{_MARK}{dev_id}",))], deleted=(dev_id,))
