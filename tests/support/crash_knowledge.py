"""What a workload was told so far, and so what a crash may leave of each device.

A `Note` stands for an instant: the contents that each device may have, oldest first, the last being what reads gave
then. While a switch is under way, the pool may be at the id before it or at one of the ids that it makes; what that
means for the devices is known once the switch is done (`Switching`, filled in later).

    instant                    at the id before               at the id that the switch makes
    write under way            its versions, and the new one   -
    switch under way           its versions                    of each device what it was when the switch began, or
                                                               later; new devices exactly what they were made of
    after a flush or switch    what was older doesn't count    -

The dead process (P1b) leaves of all that the last version alone, or the one under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from replicator.pool.catalogue_schema import Snapshot, Volume
from replicator.pool.view import CatalogueView

Versions = Mapping[int, tuple[bytes, ...]]


@dataclass(slots=True)
class Switching:
    """One operation of one switch or several; filled in when it is done.

    `views` by the ids that it made; `exact` the contents of devices that it made or changed.
    """

    marks: dict[int, int]
    views: dict[int, CatalogueView] = field(default_factory=dict)
    exact: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Note:
    """What is known at one instant."""

    at_id: int
    view: CatalogueView
    versions: Versions
    under_way: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)
    switching: Switching | None = None

    def ids(self) -> list[int]:
        """Where the superblock may stand."""
        return [self.at_id, *(sorted(self.switching.views) if self.switching is not None else ())]

    def devices(self, at_id: int) -> dict[int, int]:
        """The devices that there are at an id, with their sizes."""
        later = self.switching.views if self.switching is not None else {}
        return sizes_of(self.view if at_id == self.at_id else later[at_id])

    def allowed(self, at_id: int, dev_id: int, *, power_cut: bool) -> list[bytes]:
        """What the device may read as."""
        versions, now = self.versions.get(dev_id, ()), self.switching
        if at_id != self.at_id and now is not None:
            if dev_id in now.exact:
                return [now.exact[dev_id]]
            versions = versions[now.marks[dev_id] - 1 :]
        found = list(versions) if power_cut else list(versions[-1:])
        return [*found, *self.under_way.get(dev_id, ())]

    def recovering(self, at_id: int, later: dict[int, CatalogueView]) -> Note:
        """What is known while what a dead process left at `at_id` is opened, which makes the switches `later`.

        The machine may die in that, and take back what the dead process hadn't flushed: so earlier ids stay possible.
        """
        now = self.switching if at_id != self.at_id else None
        now = now or Switching(dict.fromkeys(self.versions, 1))
        views = {number: view for number, view in now.views.items() if number <= at_id} | later
        return replace(self, switching=Switching(now.marks, views, now.exact))


def rows_of(view: CatalogueView) -> list[Volume | Snapshot]:
    """Every device that the catalogue knows."""
    return [*view.volumes, *view.snapshots]


def sizes_of(view: CatalogueView) -> dict[int, int]:
    """Their sizes by dev_id."""
    return {row.dev_id: row.size_bytes for row in rows_of(view)}


def differing(found: bytes, allowed: list[bytes], piece_bytes: int) -> list[int]:
    """The pieces of `found` that are those of no allowed content; a longer content counts up to the length found."""
    if any(found == each for each in allowed):
        return []
    have = np.frombuffer(found, dtype=np.uint64).reshape(-1, piece_bytes // 8)
    same = np.zeros(len(have), dtype=bool)
    for each in allowed:
        if len(each) >= len(found):
            other = np.frombuffer(each, dtype=np.uint64, count=len(found) // 8)
            same |= (other.reshape(have.shape) == have).all(axis=1)
    wrong: list[int] = np.flatnonzero(~same).tolist()
    return wrong
