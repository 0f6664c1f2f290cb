"""The publisher's decision: every row of its table, and, over all combinations, that it ends and never loses a base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest

from agent.decide import (
    UNCHANGED,
    Abort,
    CreateStream,
    Drop,
    Facts,
    FencedError,
    Finish,
    LostEndError,
    OpenStream,
    Outcome,
    PoolOlderError,
    Publish,
    Ready,
    Refuse,
    RefusedError,
    Resume,
    Rewind,
    StartTimeline,
    TimelineOverError,
    VolumeGoneError,
    decide,
)
from replicator.events.state import Life, OpenTransaction, StreamState
from replicator.events.values import Counts, DeltaKind, Phase, StateName
from replicator.pool.catalogue_schema import Position, Prepared, Role

VOLUME = UUID(int=1)
OURS, THEIRS = UUID(int=2), UUID(int=3)
SIZE = 1 << 20


def digest(number: int, history: int = 0) -> bytes:
    return bytes([number, history]) * 8


def state(
    committed: int = 0, *, opened: UUID | None = None, epoch: int = 1, life: Life = Life.LIVE, history: int = 0
) -> StreamState:
    name = StateName(1, committed, digest(committed, history)) if committed else None
    begun = None
    if opened is not None:
        kind = DeltaKind.DELTA if committed else DeltaKind.FULL
        begun = OpenTransaction(committed + 1, opened, name, 5, SIZE, 9, kind, 1, Phase.BEGAN, 0, Counts())
    return StreamState(VOLUME, 1, epoch, 9, digest(9), life, "disk", SIZE, 5, name, 7 if committed else 0, begun)


def position(number: int, epoch: int = 1) -> Position | None:
    return Position(VOLUME, Role.PUBLISHED, 1, number, digest(number), 7, epoch, 5) if number else None


def prepared(number: int) -> Prepared:
    return Prepared(VOLUME, 1, number, OURS, 10 if number > 1 else None, 11, 5, SIZE)


def facts(tail: StreamState, published: int = 0, waiting: Prepared | None = None, **more: object) -> Facts:
    given = {"tail": tail, "position": position(published), "prepared": waiting, "epoch": tail.epoch, **more}
    return replace(Facts("POOL", "disk", tail), **given)  # type: ignore[arg-type]  # the names are Facts' own


EMPTY = StreamState.start(VOLUME)
EMPTY_2 = StreamState.start(VOLUME, 2)
PARENT = StateName(1, 2, digest(2))
OPEN_2 = state(1, opened=OURS)
ROWS: list[tuple[str, Facts, type[Outcome] | type[RefusedError]]] = [
    ("new volume", facts(EMPTY, epoch=None), CreateStream),
    ("new volume, already cut", facts(EMPTY, 0, prepared(1), epoch=None), CreateStream),
    ("no epoch yet", facts(state(1), 1, epoch=None), OpenStream),
    ("the log lost our epoch", facts(state(1), 1, epoch=5), OpenStream),
    ("all agrees", facts(state(1), 1), Ready),
    ("cut, nothing sent", facts(state(1), 1, prepared(2)), Publish),
    ("the first one, nothing sent", facts(state(), 0, prepared(1)), Publish),
    ("sent in part", facts(OPEN_2, 1, prepared(2)), Resume),
    ("sent in part, target gone", facts(OPEN_2, 1, prepared(2), target_there=False), Abort),
    ("sent in part, base gone", facts(OPEN_2, 1, prepared(2), base_there=False), Abort),
    ("sent in part, unreadable", facts(OPEN_2, 1, prepared(2), void="bad block"), Abort),
    ("aborted, or never sent; unreadable", facts(state(1), 1, prepared(2), void="bad block"), Drop),
    ("perhaps sent; unreadable", facts(state(1), 1, prepared(2), void="bad block", disputed=True), OpenStream),
    ("perhaps sent, target gone", facts(state(1), 1, prepared(2), target_there=False, disputed=True), OpenStream),
    ("perhaps sent, all there", facts(state(1), 1, prepared(2), disputed=True), Publish),
    ("nothing sent, target gone", facts(state(1), 1, prepared(2), target_there=False), Drop),
    ("the first one needs no base", facts(state(), 0, prepared(1), base_there=False), Publish),
    ("nothing changed", facts(state(1), 1, prepared(2), unchanged=True), Drop),
    ("sent in part, unchanged all the same", facts(OPEN_2, 1, prepared(2), unchanged=True), Resume),
    ("of another number", facts(state(1), 1, prepared(3)), Drop),
    ("sent wholly", facts(state(2), 1, prepared(2), committed_transaction=OURS), Finish),
    ("somebody else's N", facts(state(2), 1, prepared(2), committed_transaction=THEIRS), PoolOlderError),
    ("sent, and one more", facts(state(3), 1, prepared(2), committed_transaction=None), PoolOlderError),
    (
        "sent, and the next began",
        facts(state(2, opened=THEIRS), 1, prepared(2), committed_transaction=OURS),
        PoolOlderError,
    ),
    ("the log is ahead", facts(state(2), 1), PoolOlderError),
    ("a pool that never published", facts(state(2)), PoolOlderError),
    ("an unknown open one", facts(OPEN_2, 1), PoolOlderError),
    ("one that we gave up, its abort is lost", facts(OPEN_2, 1, given_up=True), Abort),
    ("the same, and the next is cut", facts(state(1, opened=THEIRS), 1, prepared(2), given_up=True), Abort),
    ("the same, and our epoch is lost, too", facts(OPEN_2, 1, epoch=5, given_up=True), OpenStream),
    (
        "the same, and somebody took the stream",
        facts(state(1, opened=OURS, epoch=7), 1, epoch=6, given_up=True),
        FencedError,
    ),
    ("one that we gave up, and sent again", facts(OPEN_2, 1, prepared(2), given_up=True), Resume),
    ("another open one", facts(state(1, opened=THEIRS), 1, prepared(2)), PoolOlderError),
    ("two histories", facts(state(1, history=1), 1), PoolOlderError),
    ("the log lost its end", facts(state(1), 2), Rewind),
    ("the log lost all but its beginning", facts(state(), 2), Rewind),
    ("a rebase claimed a timeline", facts(EMPTY_2, 2, epoch=None, parent=PARENT), StartTimeline),
    ("the log lost everything", facts(EMPTY, 2, epoch=None), LostEndError),
    ("the log lost its end, the base is there", facts(state(1), 2, equal_to_tail=20), Rewind),
    ("the same, in the middle", facts(state(1, opened=THEIRS), 2, equal_to_tail=20), Abort),
    ("the same, before an epoch", facts(state(1), 2, equal_to_tail=20, epoch=None), OpenStream),
    ("another publisher", facts(state(1, epoch=7), 1, epoch=6), FencedError),
    (
        "another publisher, before we heard of our epoch",
        facts(state(1, epoch=7), 1, epoch=None, claimed=6),
        FencedError,
    ),
    ("the epoch that we may have taken stands", facts(state(1, epoch=7), 1, epoch=6, claimed=7), OpenStream),
    ("the timeline ended", facts(state(1, life=Life.ENDED), 1), TimelineOverError),
    ("a promote claimed the next", facts(state(1), 1, successor=2), TimelineOverError),
    ("deleted", facts(state(1, life=Life.DELETED), 1), VolumeGoneError),
]


@pytest.mark.parametrize(("given", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_each_row_of_the_table(given: Facts, expected: type) -> None:
    outcome = decide(given)
    if isinstance(outcome, Refuse):
        assert type(outcome.error) is expected
        assert outcome.error.exit_code == 4
        assert outcome.error.mend, "a refusal names what mends it"
    else:
        assert type(outcome) is expected


def test_outcomes_say_what_to_do() -> None:
    assert decide(facts(state(1, epoch=4), 1, epoch=None)) == OpenStream(5)
    assert decide(facts(state(1, epoch=4), 1, position=position(1, epoch=9), epoch=None)) == OpenStream(10)
    assert decide(facts(OPEN_2, 1, prepared(2))) == Resume(prepared(2), OPEN_2.open)  # type: ignore[arg-type]  # it is open
    finished = decide(facts(state(2), 1, prepared(2), committed_transaction=OURS))
    assert finished == Finish(prepared(2), StateName(1, 2, digest(2)), 7)
    assert decide(facts(state(1), 2, equal_to_tail=20)) == Rewind(StateName(1, 1, digest(1)), 20)
    assert decide(facts(state(1), 1, prepared(2), unchanged=True)) == Drop(prepared(2), UNCHANGED)


def all_facts() -> Iterator[Facts]:
    """Every combination of what the decision looks at."""
    flags = (False, True)
    for committed, opened, history in itertools.product(range(4), (None, OURS, THEIRS), (0, 1)):
        tail = state(committed, opened=opened, history=history)
        for published, number, epoch in itertools.product(range(3), (None, 1, 2, 3), (None, 1, 2)):
            waiting = prepared(number) if number else None
            for base, target, same, void in itertools.product(flags, flags, flags, (None, "bad")):
                lost_aborts = flags if opened is not None else (False,)
                for ours, equal, given_up in itertools.product((None, OURS, THEIRS), (None, 20), lost_aborts):
                    yield facts(
                        tail,
                        published,
                        waiting,
                        epoch=epoch,
                        given_up=given_up,
                        base_there=base,
                        target_there=target,
                        unchanged=same,
                        void=void,
                        committed_transaction=ours,
                        equal_to_tail=equal if committed and committed < published else None,
                    )


def after(given: Facts, outcome: Outcome) -> Facts:
    """A model of what each outcome does to pool and log."""
    tail, waiting = given.tail, given.prepared
    if isinstance(outcome, OpenStream):
        return replace(given, tail=replace(tail, epoch=outcome.epoch), epoch=outcome.epoch, disputed=False)
    if isinstance(outcome, Publish | Resume):
        assert waiting is not None
        done = replace(state(tail.next_number), epoch=tail.epoch)
        return replace(given, tail=done, committed_transaction=waiting.transaction_uuid)
    if isinstance(outcome, Finish):
        assert given.committed == outcome.prepared.number, "D2: the base goes once its successor is committed"
        named = position(outcome.committed.number)
        assert named is not None
        return replace(given, position=replace(named, digest=outcome.committed.digest), prepared=None)
    if isinstance(outcome, Abort):
        return replace(given, tail=replace(tail, open=None), given_up=False)
    if isinstance(outcome, Drop):
        return replace(given, prepared=None, void=None)
    assert isinstance(outcome, Rewind)
    named = position(outcome.committed.number) if outcome.committed is not None else None
    if named is not None and outcome.committed is not None:
        named = replace(named, digest=outcome.committed.digest)
    return replace(given, position=named, prepared=None, equal_to_tail=None)


def test_over_all_combinations_it_ends_and_a_refusal_comes_before_anything_is_written() -> None:
    count = 0
    for given in all_facts():
        count += 1
        now = replace(given, disputed=count % 2 == 0)
        for step in range(8):
            outcome = decide(now)
            if isinstance(outcome, Ready):
                break
            if isinstance(outcome, Refuse):
                assert step == 0, f"refused after something was written: {given}"
                break
            now = after(now, outcome)
        else:
            pytest.fail(f"it doesn't end: {given}")
    assert count > 10_000
