"""An overlay says the same whatever its windows and steps are, and what it takes doesn't grow with the volume."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.events.pages import ALL_PAGES
from replicator.log.index import CHUNK_ROW, DISCARDED, FRAME_ROW, RUN_ROW, ZEROED, SegmentIndex
from replicator.repository import overlay
from replicator.repository.layers import NO_CUT, PART, Layers, no_layers, packed, span_of
from replicator.repository.overlay import HOLE, UNTOUCHED, WRITTEN, ZERO, Overlay
from replicator.repository.point import DATA, NOTHING, ZEROS, Beneath, EmptyDisk, PointDisk
from replicator.units import CHUNK_BYTES, MIB, TIB

_FLAGS = {UNTOUCHED: NOTHING, HOLE: NOTHING, ZERO: ZEROS, WRITTEN: DATA}


@dataclass(slots=True)
class LaidPart:
    """A part as it is drawn: (begin, end, kind) of its runs, (page, mask, hash) of its writes, where it cuts."""

    runs: list[tuple[int, int, int]] = field(default_factory=list)
    writes: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    cut: int = NO_CUT

    def index(self) -> SegmentIndex:
        """It as a segment's; all its writes stand in one frame."""
        chunks = sorted(self.writes)
        rows = np.array([(0, *self.writes[each]) for each in chunks], dtype=CHUNK_ROW)
        runs = np.array([(begin, end, 0, kind) for begin, end, kind in self.runs], dtype=RUN_ROW)
        frames = np.zeros(1, dtype=FRAME_ROW)
        return SegmentIndex(np.zeros(1, "<u4"), frames, np.array(chunks, dtype="<u8"), rows, runs)


def layers_of(parts: list[LaidPart]) -> Layers:
    indexes = [part.index() for part in parts]
    rows = [(0, i, i + 1, part.cut, *span_of(indexes[i])) for i, part in enumerate(parts)]
    layers = Layers((), np.array(rows, dtype=PART))
    layers.keep({i: packed(index) for i, index in enumerate(indexes)})
    layers.row_count = sum(len(part.runs) + len(part.writes) for part in parts)
    return layers


@dataclass(slots=True)
class Told:
    """What an overlay has to say of one chunk: rows are (part, page, mask, wins), the newest first."""

    cleared: int = 0
    newest: tuple[int, bytes] | None = None
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    _resolved: int = 0

    def take(self, ordinal: int, part: LaidPart, chunk: int) -> None:
        """One part beneath those before; its writes came last in it, its cut first."""
        if chunk in part.writes:
            page, mask, digest = part.writes[chunk]
            if not self._resolved:
                self.newest = ordinal, digest
            if mask & ~self._resolved:
                self.rows.append((ordinal, page, mask, mask & ~self._resolved))
            self._resolved |= mask
        for kind in (ZEROED, DISCARDED):
            if any(begin <= chunk < end and kind == each for begin, end, each in part.runs):
                self._clear(kind)
        if chunk >= part.cut:
            self._clear(DISCARDED)

    def _clear(self, kind: int) -> None:
        if self._resolved != ALL_PAGES:
            self.cleared, self._resolved = kind, ALL_PAGES

    @property
    def state(self) -> int:
        if self.newest is not None:
            return WRITTEN
        return {0: UNTOUCHED, DISCARDED: HOLE, ZEROED: ZERO}[self.cleared]


def told_of(parts: list[LaidPart], chunk: int) -> Told:
    told = Told()
    for ordinal in range(len(parts) - 1, -1, -1):
        told.take(ordinal, parts[ordinal], chunk)
    return told


def drawn_part(rng: random.Random, count: int) -> LaidPart:
    part = LaidPart()
    for _ in range(rng.choice((0, 1, 3, 12))):
        begin = rng.randrange(count)
        part.runs.append((begin, rng.randrange(begin, count + 5) + 1, rng.choice((DISCARDED, ZEROED))))
    for chunk in rng.sample(range(count), rng.randrange(min(8, count))):
        mask = rng.choice((ALL_PAGES, rng.randrange(1, ALL_PAGES)))
        part.writes[chunk] = rng.randrange(100), mask, rng.randbytes(16)
    if rng.random() < 0.2:
        part.cut = rng.randrange(count + 2)
    return part


def grouped(states: list[int], begin: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, state): neighbours that are alike as one."""
    for state, alike in groupby(states):
        end = begin + len(list(alike))
        yield begin, end, state
        begin = end


def assert_window(overlaid: Overlay, parts: list[LaidPart], begin: int, end: int) -> None:
    """Chunks [begin, end), in one window, chunk by chunk."""
    window = overlaid.window_of(begin)
    told = [told_of(parts, chunk) for chunk in range(begin, end)]
    assert window.states(begin, end).tolist() == [each.state for each in told]
    assert window.newest_of(begin, end).tolist() == [each.newest for each in told if each.newest is not None]
    bounds, rows = window.rows_of(begin, end)
    for i, each in enumerate(told):
        found = [(int(window.frames[slot]["part"]), *rest) for slot, *rest in rows[bounds[i] : bounds[i + 1]].tolist()]
        assert found == each.rows
        assert window.cleared[begin + i - window.begin] == each.cleared


def assert_runs(disk: PointDisk, states: list[int], rng: random.Random) -> None:
    """Where there is what, in a range that needn't end where chunks do; and what was touched."""
    touched = [(begin, end) for begin, end, state in grouped(states, 0) if state != UNTOUCHED]
    assert list(disk.touched()) == [
        (begin * CHUNK_BYTES, min(end * CHUNK_BYTES, disk.size_bytes)) for begin, end in touched
    ]
    at = rng.randrange(disk.size_bytes + 1)
    stop = rng.randrange(at, disk.size_bytes + 1)
    first, last = at // CHUNK_BYTES, -(-stop // CHUNK_BYTES) if stop > at else at // CHUNK_BYTES
    expected = [
        (max(begin * CHUNK_BYTES, at), min(end * CHUNK_BYTES, stop), flags)
        for begin, end, flags in grouped([_FLAGS[each] for each in states[first:last]], first)
    ]
    assert list(disk.runs(at, stop - at)) == [(begin, end - begin, flags) for begin, end, flags in expected]


def shrunk(patch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """All of the overlay's sizes so small that a few chunks cross them."""
    patch.setattr(overlay, "WINDOW_CHUNKS", rng.choice((1, 2, 3, 7, 64)))
    patch.setattr(overlay, "WIDE_CHUNKS", rng.choice((1, 5, 16, 64)))
    patch.setattr(overlay, "ROWS_WIDE", rng.choice((0, 20, 1 << 22)))
    patch.setattr(overlay, "STEP_CHUNKS", rng.choice((1, 2, 5, 64)))
    patch.setattr(overlay, "WINDOWS_MAX", rng.choice((1, 4)))
    patch.setattr(overlay, "WINDOWS_BYTES", rng.choice((0, 1000, MIB)))
    patch.setattr(overlay, "JOINED_PARTS", rng.choice((1, 2, 1 << 10)))
    patch.setattr(overlay, "_RUNS_ONE_BY_ONE", rng.choice((0, 2, 64)))
    patch.setattr(overlay, "_CHUNKS_A_RUN", rng.choice((1, 1 << 10)))


@settings(max_examples=200)
@given(st.integers(0, 1 << 32))
def test_windows_and_steps_show_nowhere(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randrange(1, 80)
    parts = [drawn_part(rng, count) for _ in range(rng.randrange(6))]
    states = [told_of(parts, chunk).state for chunk in range(count)]
    size_bytes = count * CHUNK_BYTES - rng.choice((0, 512))
    with pytest.MonkeyPatch.context() as patch:
        shrunk(patch, rng)
        disk = PointDisk("disk-1", size_bytes, Beneath(EmptyDisk()), layers_of(parts))
        overlaid = disk.overlay
        assert list(overlaid.alike(0, count)) == list(grouped(states, 0))
        for begin in range(0, count, overlaid.window_chunks):
            assert_window(overlaid, parts, begin, min(begin + overlaid.window_chunks, count))
        for _ in range(4):
            assert_runs(disk, states, rng)


# -- what it takes ------------------------------------------------------------------------------------------------

_WINDOW_BYTES = overlay.WIDE_CHUNKS
_BUILT_BYTES = 4 * overlay.WIDE_CHUNKS + 12 * MIB
"""A wide window in work: four bytes a chunk, and what is done to a piece of WINDOW_CHUNKS at once."""


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that were allocated at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def drained(pieces: Iterator[tuple[int, ...]]) -> int:
    return sum(1 for _ in pieces)


@pytest.mark.parametrize("size_bytes", [4 * TIB, 16 * TIB])
def test_a_volume_that_nothing_lies_over_takes_the_same_at_any_size(size_bytes: int) -> None:
    disk = PointDisk("disk-1", size_bytes, Beneath(EmptyDisk()), no_layers())
    assert peak_of(lambda: disk.pread(4096, 0)) < _BUILT_BYTES
    assert peak_of(lambda: drained(disk.touched())) < _BUILT_BYTES
    assert peak_of(lambda: drained(disk.runs(0, size_bytes))) < _BUILT_BYTES


def trimmed(size_bytes: int, run_count: int, run_chunks: int) -> LaidPart:
    """Runs of one kind, evenly over the volume."""
    apart = size_bytes // CHUNK_BYTES // run_count
    return LaidPart([(i * apart, i * apart + run_chunks, DISCARDED) for i in range(run_count)])


@pytest.mark.parametrize(("run_count", "run_chunks"), [(1, 1 << 28), (100, 1), (100, 1 << 20), (1 << 16, 3)])
def test_a_trimmed_volume_of_16_tib(run_count: int, run_chunks: int) -> None:
    layers = layers_of([trimmed(16 * TIB, run_count, run_chunks)])
    disk = PointDisk("disk-1", 16 * TIB, Beneath(EmptyDisk()), layers)
    bound = overlay.WINDOWS_BYTES + _WINDOW_BYTES + _BUILT_BYTES
    found = []
    assert peak_of(lambda: found.append(drained(disk.touched()))) < bound
    assert found == [run_count]


def test_a_trimmed_volume_of_one_window_takes_little_more_than_it() -> None:
    layers = layers_of([trimmed(TIB, 1 << 15, 3)])
    assert peak_of(lambda: Overlay(layers, TIB // CHUNK_BYTES).window_of(0)) < _BUILT_BYTES


def test_many_small_parts_leave_no_object_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "JOINED_PARTS", 64)
    count = 3000
    layers = layers_of([LaidPart(writes={chunk: (0, 1, bytes(16))}) for chunk in range(count)])
    row_bytes = sum(kind.itemsize for kind in (overlay.ROW, overlay.FRAME, overlay.NEWEST)) + 2 * 4
    window_bytes = count * (2 * row_bytes + 2 * 8)  # as it is joined, and ordered
    assert peak_of(lambda: Overlay(layers, count).window_of(0)) < window_bytes + MIB // 2


def test_windows_in_which_nothing_was_cleared_are_all_kept() -> None:
    parts = [LaidPart(writes={chunk: (0, 1, bytes(16))}) for chunk in range(0, 1 << 28, 1 << 24)]
    overlaid = Overlay(layers_of(parts), 1 << 28)
    windows = [overlaid.window_of(chunk) for chunk in range(0, 1 << 28, 1 << 24)]
    assert len({window.begin for window in windows}) == 16 > overlay.WINDOWS_MAX
    assert sum(window.held_bytes for window in windows) < 10_000
    assert all(overlaid.window_of(window.begin) is window for window in windows)
