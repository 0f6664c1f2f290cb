"""Which cut a point was made at, and which point a cut means: by an index, as a look at all of them would tell."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar
from uuid import UUID

import pytest

from replicator.history.lineage import Lineage
from replicator.history.plan import Inventory
from replicator.history.points import RestorePoint
from replicator.history.resolve import NamedVolume
from replicator.log.interface import VolumeEntry
from replicator.pool.catalogue_schema import LoggedGroup
from replicator.repository.groups import MemberCuts
from replicator.repository.offer import Offer
from replicator.repository.source import Source

GROUP = UUID(int=9)
SELF, OTHER = UUID(int=1), UUID(int=2)
SECOND_NS = 10**9

T = TypeVar("T")


def cut_by_looking(cuts: Sequence[LoggedGroup], point: RestorePoint) -> LoggedGroup | None:
    """The oldest from the point's instant on that has its number."""
    alike = [each for each in cuts if (point.volume, point.number) in each.members]
    return min(
        (each for each in alike if each.number >= point.timestamp_ns), key=lambda each: each.number, default=None
    )


def point_by_looking(points: Sequence[RestorePoint], number: int, instant_ns: int) -> RestorePoint | None:
    """The latest of that number up to the instant."""
    alike = [each for each in points if each.number == number and each.timestamp_ns <= instant_ns]
    return max(alike, key=lambda each: (each.timestamp_ns, each.timeline), default=None)


@pytest.mark.parametrize("seed", range(200))
def test_the_index_says_what_a_look_at_all_says(seed: int) -> None:
    rng = random.Random(seed)
    cuts = []
    for number in sorted(rng.sample(range(60), 20)):
        members = [(volume, rng.randrange(8)) for volume in (SELF, OTHER) if rng.random() < 0.9]
        cuts.append(LoggedGroup(GROUP, number, tuple(members)))
    places = rng.sample([(timeline, number) for timeline in (1, 2, 3) for number in range(1, 9)], 12)
    points = [RestorePoint(SELF, *place, rng.randrange(60)) for place in places]
    index = MemberCuts(SELF, cuts, points)
    for point in points:
        assert index.cut_of(point) == cut_by_looking(cuts, point)
    for number in range(9):
        for instant_ns in range(0, 60, 7):
            assert index.point_at(number, instant_ns) == point_by_looking(points, number, instant_ns)


class Counted(tuple[T, ...]):
    """A tuple that counts the values it is walked through for."""

    taken = 0

    def __iter__(self) -> Iterator[T]:
        for each in super().__iter__():
            self.taken += 1
            yield each


class ListedLog:
    """A log of which nothing but its volumes is asked."""

    asked = 0

    def volumes(self) -> list[VolumeEntry]:
        """Two."""
        self.asked += 1
        names = {SELF: "vm1", OTHER: "vm2"}
        return [VolumeEntry(volume, 1, name, "alpha", 1 << 30, False) for volume, name in names.items()]


def test_a_list_of_points_walks_cuts_points_and_volumes_once() -> None:
    log, numbers = ListedLog(), range(1, 501)
    source = Source("log", log=log)  # type: ignore[arg-type]  # all of a log that is asked here
    groups = [LoggedGroup(GROUP, i * SECOND_NS, ((SELF, i), (OTHER, 1 + i // 10))) for i in numbers]
    counted: list[Counted[LoggedGroup] | Counted[RestorePoint]] = []
    for named in source.volumes():
        points = Counted(RestorePoint(named.uuid, 1, i, i * SECOND_NS) for i in numbers)
        cuts = Counted(groups)
        counted += [points, cuts]
        source._offers[named.uuid] = Offer(named, points, Lineage(), Inventory(), None, {}, groups=cuts)
    log.asked = 0
    offer = source._offers[SELF]
    found = [source.group_of(offer, RestorePoint(SELF, 1, i, i * SECOND_NS)) for i in numbers]
    assert [group.number for group in found if group is not None] == [each.number for each in groups]
    assert [each.taken for each in counted] == [len(numbers)] * 4
    assert log.asked == 1


def test_an_offer_that_was_read_again_is_looked_at_again() -> None:
    source = Source("log")
    source._members[SELF] = named = NamedVolume(SELF, "vm1")
    point = RestorePoint(SELF, 1, 1, SECOND_NS)
    cut = LoggedGroup(GROUP, SECOND_NS, ((SELF, 1),))
    before = Offer(named, (point,), Lineage(), Inventory(), None, {})
    after = Offer(named, (point,), Lineage(), Inventory(), None, {}, groups=(cut,))
    for offer, numbers in ((before, []), (after, [SECOND_NS])):
        source._offers[SELF] = offer
        found = source.group_of(offer, point)
        assert [each.number for each in (found,) if each is not None] == numbers
