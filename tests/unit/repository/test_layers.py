"""What is kept in memory of a history while it is collected (L3), and that the overlay is the same whatever is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from replicator.events.state import StreamState
from replicator.events.values import CHUNK_LIMIT
from replicator.history.lineage import Revision, Stretch
from replicator.history.plan import EmptyBase, Plan
from replicator.log.index import CHUNK_ROW, DISCARDED, FRAME_ROW, RUN_ROW, SegmentIndex
from replicator.log.parts import Part
from replicator.repository import layers as layers_module
from replicator.repository.layers import NO_CUT, PART, Layers, collect, span_of
from replicator.repository.overlay import WRITTEN, Overlay
from replicator.units import KIB, MIB
from tests.support.event_streams import VOLUME, Script


def index_of(first: int, chunk_count: int) -> SegmentIndex:
    """So many chunks that were written, from 10 for each event before it, and a run before them."""
    rows = np.zeros(chunk_count, dtype=CHUNK_ROW)
    rows["mask"], rows["hash"] = 1, first.to_bytes(16, "little")
    begin = 10 * first
    runs = np.array([(begin, begin + chunk_count, 0, DISCARDED)], dtype=RUN_ROW)
    chunks = np.arange(begin, begin + chunk_count, dtype="<u8")
    offsets = np.arange(2, dtype="<u4")
    return SegmentIndex(offsets, np.zeros(3, dtype=FRAME_ROW), chunks, rows, runs)


def bytes_of(index: SegmentIndex) -> list[bytes]:
    return [bytes(each) for each in index.encode()]


class PartsLog:
    """A log, and its reader, of `transactions` whose parts' indexes are made when they are asked for."""

    def __init__(self, transactions: int, part_count: int, chunk_count: int) -> None:
        self._shape = transactions, part_count, chunk_count
        self._opening = Script().create().state
        self.asked_again: list[int] = []

    def reader(self, _volume: object, _timeline: int) -> PartsLog:
        """Itself."""
        return self

    def start(self) -> StreamState:
        """The beginning."""
        return StreamState.start(VOLUME)

    tail = read = follow = frame = start  # so that it is an IndexedReader; nobody asks

    def index_of(self, first: int) -> SegmentIndex:
        """Again."""
        self.asked_again.append(first)
        return index_of(first, self._shape[2])

    def parts(self, _sequence: int) -> Iterator[Part]:
        """Each transaction's: the first begins it, the last commits it."""
        script, (transactions, part_count, chunk_count) = Script(self._opening), self._shape
        for number in range(transactions):
            for i in range(part_count):
                script.begin() if i == 0 else None
                script.commit() if i == part_count - 1 else None
                first = number * part_count + i
                yield Part(first, first, index_of(first, chunk_count), tuple(script.take()), script.state)


def collected(log: PartsLog, transactions: int) -> Layers:
    plan = Plan(Revision(1, transactions), EmptyBase(), (Stretch(1, 1, transactions + 1),))
    return collect(log, VOLUME, plan, 0, None)  # type: ignore[arg-type]  # all of a log that is asked here


def peak_of_collecting(log: PartsLog, transactions: int) -> int:
    tracemalloc.start()
    try:
        collected(log, transactions)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_open_transaction_keeps_no_more_than_committed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "KEPT_BYTES", 2 * MIB)
    log = PartsLog(1, 64, 8192)  # 256 KiB of index each
    assert peak_of_collecting(log, 1) < 2 * MIB + 4 * 256 * KIB


def test_small_indexes_take_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "KEPT_BYTES", 256 * KIB)
    count = 3000
    table_bytes = count * (PART.itemsize + 2 * 32)  # and the rows that it is made of, which grow by and by
    assert peak_of_collecting(PartsLog(count, 1, 1), count) < 256 * KIB + table_bytes + 128 * KIB


@pytest.mark.parametrize("kept_bytes", [0, 3000, 64 * MIB])
def test_an_index_is_the_same_kept_or_read_again(kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "KEPT_BYTES", kept_bytes)
    log = PartsLog(3, 4, 9)
    layers = collected(log, 3)
    assert [(layers.number(i), layers.cut(i)) for i in range(12)] == [(1 + i // 4, NO_CUT) for i in range(12)]
    assert (layers.row_count, layers.transaction_count) == (12 * 10, 3)
    for i in range(12):
        assert bytes_of(layers.index(i)) == bytes_of(index_of(i, 9))
    assert log.asked_again == {0: list(range(12)), 3000: list(range(4, 12)), 64 * MIB: []}[kept_bytes]


def test_a_window_reads_the_indexes_of_its_own_parts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "KEPT_BYTES", 0)
    log = PartsLog(3, 4, 10)
    overlay = Overlay(collected(log, 3), 120, window_chunks=30)
    for begin in range(0, 120, 30):
        log.asked_again.clear()
        assert overlay.window_of(begin).states(begin, begin + 30).tolist() == [WRITTEN] * 30
        assert log.asked_again == [begin // 10 + 2, begin // 10 + 1, begin // 10]


@pytest.mark.parametrize(
    ("runs", "chunks", "span"),
    [
        ([], [], (CHUNK_LIMIT, 0)),
        ([], [7], (7, 8)),
        ([(9, 12), (3, 5)], [], (3, 12)),
        ([(9, 12)], [4, 11], (4, 12)),
        ([(9, 12)], [10, 40], (9, 41)),
        ([(1, 2**64 - 1)], [2**64 - 1], (1, CHUNK_LIMIT)),
    ],
)
def test_a_span_holds_all_runs_and_writes(
    runs: list[tuple[int, int]], chunks: list[int], span: tuple[int, int]
) -> None:
    rows = np.array([(begin, end, 0, DISCARDED) for begin, end in runs], dtype=RUN_ROW)
    written = np.zeros(len(chunks), dtype=CHUNK_ROW)
    frames, places = np.zeros(1, dtype=FRAME_ROW), np.array(chunks, dtype="<u8")
    assert span_of(SegmentIndex(np.zeros(1, "<u4"), frames, places, written, rows)) == span
