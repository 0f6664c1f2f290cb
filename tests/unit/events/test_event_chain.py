"""The table of chain.ChainChecker, row by row, and the rules of fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from replicator.errors import ConflictError, DamageError
from replicator.events.bodies import (
    Body,
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeAttested,
    VolumeCreated,
    VolumeDeleted,
    VolumeRenamed,
)
from replicator.events.chain import WINDOW_EVENTS, ChainChecker, Skipped, Verdict, seal
from replicator.events.chunks import ChunksDiscarded, ChunksZeroed
from replicator.events.codec import Event, encode_event
from replicator.events.state import Life, StreamState, decode_state, encode_state
from replicator.events.stream_errors import (
    BrokenOrderError,
    ForkError,
    GapError,
    OtherHistoryError,
    ReorderedError,
    StreamEndedError,
    WrongBaseError,
)
from replicator.events.values import Consistency, Counts, DeltaKind, Phase, StateName
from tests.support.event_streams import NAME, OTHER_VOLUME, SIZE_BYTES, VOLUME, Script, written
from tests.support.packed_runs import pack_runs


def after(events: list[Event], state: StreamState | None = None) -> ChainChecker:
    checker = ChainChecker(state or StreamState.start(VOLUME))
    for event in events:
        assert checker.accept(event) is Verdict.APPLY
    return checker


def test_both_ends_come_to_one_state() -> None:
    script = Script().create().transaction(1, 2).transaction(3)
    checker = after(script.events)
    assert checker.state == script.state
    assert script.state.committed == StateName(1, 2, script.events[-1].digest)
    assert script.state.number == 2 and script.state.next_number == 3
    assert checker.skipped == Skipped()


def test_a_saved_state_goes_on_anywhere() -> None:
    script = Script().create().transaction(1, 2)
    for i in range(len(script.events)):
        saved = decode_state(encode_state(after(script.events[:i]).state))
        assert after(script.events[i:], saved).state == script.state


def test_the_header_counts_with_the_stream() -> None:
    script = Script().create().begin()
    event = script.put(written(5, 6))
    header = event.header
    assert (header.number, header.began, header.cursor, header.chunks, header.pages) == (1, 3, 7, 2, 32)
    assert header.phase is Phase.WRITES and header.stored_bytes == event.body.counts.stored_bytes  # type: ignore[union-attr]  # a ChunksWritten
    committed = script.commit().events[-1].header
    assert (committed.number, committed.began, committed.committed, committed.chunks) == (1, 0, 5, 0)


def test_duplicates_are_skipped_and_counted() -> None:
    script = Script().create().transaction()
    checker = after(script.events)
    for event in script.events:
        assert checker.accept(event) is Verdict.DUPLICATE
    resumed = ChainChecker(script.state)
    assert resumed.accept(script.events[-1]) is Verdict.DUPLICATE
    assert resumed.accept(script.events[1]) is Verdict.DUPLICATE, "older than the window of a resumed checker (K3)"
    assert checker.skipped.duplicates == len(script.events) and checker.state == script.state


def test_a_gap_and_what_comes_after_it() -> None:
    events = Script().create().transaction().events
    checker = after(events[:3])
    with pytest.raises(GapError, match="expected event 4, found 6") as caught:
        checker.accept(events[5])
    assert caught.value.missing == (4, 6) and checker.state.sequence == 3
    with pytest.raises(ReorderedError):
        checker.accept(events[3])


def test_an_earlier_epoch_is_stale_and_a_later_one_takes_over() -> None:
    script = Script().create().begin()
    zombie = Script(script.state)
    zombie.put(written(9))
    script.open()
    checker = after(script.events)
    assert checker.accept(zombie.events[0]) is Verdict.STALE
    assert checker.skipped == Skipped(stale=1)
    script.put(written(1))
    assert checker.accept(script.commit().events[-2]) is Verdict.APPLY
    assert checker.accept(script.events[-1]) is Verdict.APPLY


def test_forks_within_an_epoch() -> None:
    script = Script().create().begin()
    other = Script(script.state)
    script.put(written(1))
    other.put(written(2))
    checker = after(script.events)
    with pytest.raises(ForkError, match="event 4"):
        checker.accept(other.events[0])
    with pytest.raises(ForkError):
        checker.accept(other.commit().events[-1])
    assert checker.state == script.state


def test_other_histories() -> None:
    script = Script().create().transaction()
    checker = after(script.events)
    stranger = Script(StreamState.start(OTHER_VOLUME)).create().events[0]
    with pytest.raises(OtherHistoryError, match=str(OTHER_VOLUME)):
        checker.accept(stranger)
    later = Script(replace(script.state, digest=bytes(16)))
    with pytest.raises(OtherHistoryError, match="hangs on"):
        checker.accept(later.open().events[0])
    early = Script(after(script.events[:3]).state)
    with pytest.raises(OtherHistoryError, match="takes the place"):
        checker.accept(early.open().events[0])


def test_a_timeline_forks_at_the_last_commit_only() -> None:
    script = Script().create().transaction()
    fork = script.state.committed
    assert fork is not None
    promoted = Script(StreamState.start(VOLUME, 2), host="beta")
    promoted.put(TimelineStarted(fork, "disk-1", SIZE_BYTES, "beta", 9))
    promoted.open().transaction(4)
    assert promoted.state.committed == StateName(2, 2, promoted.events[-1].digest)
    followed = after(script.events + promoted.events)
    assert followed.state == promoted.state
    assert after(promoted.events, StreamState.start(VOLUME, 2)).state == promoted.state
    script.transaction(5)
    with pytest.raises(OtherHistoryError, match="fork"):
        after(script.events).accept(promoted.events[0])
    with pytest.raises(OtherHistoryError):
        after(script.events).accept(promoted.events[1])


def test_the_window_forgets_but_nothing_is_applied() -> None:
    script = Script().create()
    for i in range(WINDOW_EVENTS + 5):
        script.put(VolumeRenamed(f"disk-{i}", i))
    checker = after(script.events)
    assert checker.accept(script.events[1]) is Verdict.DUPLICATE


def test_wrong_running_counts_are_seen() -> None:
    script = Script().create().begin()
    before = script.state
    event = script.put(written(1, 2))
    for change in ({"chunks": 3}, {"pages": 1}, {"cursor": 9}, {"number": 2}, {"epoch": 2}, {"began": 2}):
        wrong = encode_event(replace(event.header, **change), event.body)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(DamageError):
            ChainChecker(before).accept(wrong)


def began(**change: object) -> TransactionBegan:
    body = TransactionBegan(1, UUID(int=1), None, 10**10, SIZE_BYTES, 1000, DeltaKind.FULL)
    return replace(body, **change)  # type: ignore[arg-type]  # the test's own fields


DISCARD = ChunksDiscarded(pack_runs([(5, 6)]))
ZERO = ChunksZeroed(pack_runs([(5, 6)]))
COMMIT = TransactionCommitted(1, Counts(), Consistency.CRASH, (), None)


@pytest.mark.parametrize(
    ("prefix", "body", "error"),
    [
        (Script, PublisherOpened(1, "h", (), 1), BrokenOrderError),
        (Script, TimelineStarted(NAME, "a", 512, "h", 1), BrokenOrderError),
        (Script, COMMIT, BrokenOrderError),
        (lambda: Script().create(), VolumeCreated("b", 512, "h", 1), BrokenOrderError),
        (lambda: Script().create(), PublisherOpened(1, "h", (), 1), BrokenOrderError),
        (lambda: Script().create(), began(number=2), BrokenOrderError),
        (lambda: Script().create(), began(base=NAME, kind=DeltaKind.DELTA), WrongBaseError),
        (lambda: Script().create(), DISCARD, BrokenOrderError),
        (lambda: Script().create(), TransactionAborted(1, UUID(int=1), ""), BrokenOrderError),
        (lambda: Script().create(), TimelineEnded(2, "h", 1), None),
        (lambda: Script().create().begin(), began(), BrokenOrderError),
        (lambda: Script().create().begin(), VolumeRenamed("b", 1), BrokenOrderError),
        (lambda: Script().create().begin(), VolumeDeleted(1), BrokenOrderError),
        (lambda: Script().create().begin(), PointLabelled(NAME, "x", 1), BrokenOrderError),
        (lambda: Script().create().begin(), VolumeAttested(NAME, 512, 1, bytes(16)), BrokenOrderError),
        (lambda: Script().create().begin(), PublisherOpened(2, "h", (), 1), None),
        (lambda: Script().create().begin(), TimelineEnded(2, "h", 1), None),
        (lambda: Script().create().begin(), ChunksZeroed(pack_runs([(16383, 16385)])), BrokenOrderError),
        (lambda: Script().create().begin(bound=1), ChunksZeroed(pack_runs([(0, 2)])), BrokenOrderError),
        (lambda: Script().create().begin(), TransactionAborted(1, UUID(int=2), ""), BrokenOrderError),
        (lambda: Script().create().begin(), TransactionAborted(1, UUID(int=1), "gone"), None),
        (lambda: Script().create().begin(), replace(COMMIT, counts=Counts(1)), BrokenOrderError),
        (lambda: Script().create().begin(), replace(COMMIT, number=2), BrokenOrderError),
        (lambda: Script().create().transaction(), began(number=2), WrongBaseError),
    ],
)
def test_what_may_follow_what(prefix: Callable[[], Script], body: Body, error: type[Exception] | None) -> None:
    script = prefix()
    if error is None:
        script.put(body)
        return
    with pytest.raises(error):
        seal(script.state, body)


def test_the_order_within_a_transaction() -> None:
    script = Script().create().begin()
    script.put(DISCARD)
    script.put(ZERO)
    for late in (DISCARD, ZERO):
        with pytest.raises(BrokenOrderError):
            seal(script.state, late)
    script.put(written(2, 5))
    for body in (ZERO, written(5), written(1)):
        with pytest.raises(BrokenOrderError):
            seal(script.state, body)
    script.put(written(6))


def test_an_aborted_number_is_used_again() -> None:
    script = Script().create().transaction().begin()
    script.put(TransactionAborted(2, UUID(int=2), "the target is gone"))
    assert script.state.number == 1 and script.state.next_number == 2
    script.transaction()
    assert after(script.events).state.number == 2


def test_cuts_never_go_back_in_time() -> None:
    script = Script().create().transaction()
    body = began(number=2, base=script.state.committed, kind=DeltaKind.DELTA, timestamp_ns=5)
    with pytest.raises(BrokenOrderError, match="timestamp"):
        seal(script.state, body)


def test_ended_and_deleted() -> None:
    script = Script().create()
    script.put(VolumeDeleted(1))
    assert script.state.life is Life.DELETED
    with pytest.raises(BrokenOrderError):
        seal(script.state, began())
    script.put(PointLabelled(NAME, "keep", 1))
    script.put(TimelineEnded(2, "beta", 1))
    with pytest.raises(StreamEndedError):
        seal(script.state, PublisherOpened(9, "h", (), 1))


def test_errors_say_where_and_exit_as_they_must() -> None:
    events = Script().create().transaction().events
    checker = after(events[:3])
    with pytest.raises(DamageError, match=r"volume disk-1 .*timeline 1, transaction 1, event 3") as caught:
        checker.accept(events[4])
    assert caught.value.exit_code == 3
    assert issubclass(ForkError, ConflictError) and ForkError.exit_code == 4
