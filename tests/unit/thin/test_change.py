"""Which change comes next: in order, those that let others pass behind the others, and none for ever."""

from __future__ import annotations

from replicator.thin.change import OVERTAKEN, Change, ChangeQueue


def named(number: int, *, waits: bool = False) -> Change:
    return Change(apply=lambda _: number, weight=number, waits=waits)


def drained(queue: ChangeQueue) -> list[int]:
    found = []
    while (change := queue.pop()) is not None:
        found.append(change.weight)
    return found


def test_changes_come_in_order_and_slices_behind_them() -> None:
    queue = ChangeQueue()
    assert not queue and queue.pop() is None
    for number, waits in ((1, False), (90, True), (2, False), (91, True), (3, False)):
        queue.append(named(number, waits=waits))
    assert queue
    assert drained(queue) == [1, 2, 3, 90, 91] and not queue


def test_one_that_lets_others_pass_is_late_but_never_starves() -> None:
    queue = ChangeQueue()
    queue.append(named(90, waits=True))
    queue.append(named(91, waits=True))
    for number in range(2 * OVERTAKEN + 3):
        queue.append(named(number))
    found = drained(queue)
    assert found.index(90) == OVERTAKEN and found.index(91) == 2 * OVERTAKEN + 1
    assert [each for each in found if each < 90] == list(range(2 * OVERTAKEN + 3))


def test_what_nobody_overtook_isnt_early_afterwards() -> None:
    queue = ChangeQueue()
    for number in range(OVERTAKEN + 2):
        queue.append(named(number))
    drained(queue)
    queue.append(named(90, waits=True))
    queue.append(named(1))
    assert drained(queue) == [1, 90]
