"""Newest wins: for each chunk that the log's transactions touch, which pages of which frames it is made of.

Between layers (the transactions) and point (the disk). Built a window of chunks at a time, from the newest part to the
oldest, over two dense arrays; a part's rows are looked at together, and only what nothing newer covers is kept.

    resolved   a 16-bit mask a chunk: pages that a newer part has given
    cleared    a byte a chunk: DISCARDED or ZEROED where a run ended the search for all other pages

    part's rows (chunk, mask)    wins = mask & ~resolved; kept if any; resolved |= mask
    part's runs                  where resolved isn't all: cleared = kind; resolved = all

Within a part writes come after runs, so they are looked at first.

    ROW     slot u32 (frame), page u16, mask u16, wins u16: page `p` of the chunk, if it is in `wins`, is page
            (page + how many bits of mask are below p) of the frame
    FRAME   part u32, number u32, and the segment's FRAME_ROW
    NEWEST  part u32, hash: of the newest write of a chunk, where nothing cleared it later

The chunks of ROW and NEWEST stand in arrays of their own, ascending, to be binary-searched.

Invariants
  O1  The wins of a chunk's rows are disjoint; what they leave is zeros if it is cleared, else the base's.
  O2  A chunk is written, cleared or untouched: exactly the written ones have a NEWEST, whose hash is that of the chunk.
  O3  Memory doesn't grow with the volume. A window is WINDOW_CHUNKS chunks of at most 16 rows, or, of an overlay of at
      most ROWS_WIDE rows, WIDE_CHUNKS; beside its rows it takes a byte a chunk, or none if it is cleared nowhere, or
      everywhere alike; four while it is built, and a few more on WINDOW_CHUNKS of it. WINDOWS_MAX windows are kept,
      and more while all take no more than WINDOWS_BYTES. Nothing a chunk or a part is an object, but the borders of
      STEP_CHUNKS, and the arrays of JOINED_PARTS.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.events.pages import ALL_PAGES, Masks
from replicator.log.index import DISCARDED, FRAME_ROW, SegmentIndex
from replicator.repository.layers import NO_CUT, Layers
from replicator.units import MIB

WINDOW_CHUNKS = 1 << 20
"""Chunks of a window: 64 GiB of volume, some 30 MB where each was written once."""

ROWS_WIDE = 1 << 22
"""Rows of an overlay whose windows are wide: at most 150 MB, however they lie."""

WIDE_CHUNKS = 1 << 24
"""Chunks of a wide window: 1 TiB of volume, so that most volumes need one pass over their parts; 16 MiB, 64 in work."""

WINDOWS_MAX = 4
"""Windows kept in any case: reads that jump about a large volume build each anew when they need more."""

WINDOWS_BYTES = 64 * MIB
"""Windows of few rows are small: as many are kept as take this together."""

STEP_CHUNKS = 1 << 16
"""Chunks whose states are looked at together: 4 GiB of volume, some 3 MB where no two neighbours are alike."""

JOINED_PARTS = 1 << 10
"""Parts whose arrays are joined as one: a week of cuts each second is 600,000 parts, most of a few rows."""

_RUNS_ONE_BY_ONE = 64
_CHUNKS_A_RUN = 1 << 10
"""Of more runs, and closer ones, marking begins and ends and summing them up is quicker than one by one."""

ROW = np.dtype([("slot", "<u4"), ("page", "<u2"), ("mask", "<u2"), ("wins", "<u2")])
FRAME = np.dtype([("part", "<u4"), ("number", "<u4"), *((name, FRAME_ROW[name]) for name in FRAME_ROW.names or ())])
NEWEST = np.dtype([("part", "<u4"), ("hash", "V16")])

Rows = npt.NDArray[np.void]
Chunks = npt.NDArray[np.uint32]
"""Chunks by their place in the window."""
Places = npt.NDArray[np.int64]

UNTOUCHED, HOLE, ZERO, WRITTEN = 0, 1, 2, 3
"""What the overlay says of a chunk: nothing; discarded; zeroed; written in part or whole."""


@dataclass(frozen=True, slots=True)
class Window:
    """The overlay of the chunks [begin, end)."""

    begin: int
    end: int
    row_chunks: Chunks
    rows: Rows
    frames: Rows
    newest_chunks: Chunks
    newest: Rows
    cleared: npt.NDArray[np.uint8]

    def states(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """UNTOUCHED, HOLE, ZERO or WRITTEN of the chunks [begin, end), which lie in the window."""
        low, high = begin - self.begin, end - self.begin
        states = np.where(self.cleared[low:high] == DISCARDED, np.uint8(HOLE), np.uint8(ZERO))
        states[self.cleared[low:high] == 0] = UNTOUCHED
        written = self.newest_chunks[_between(self.newest_chunks, low, high)]
        states[written.astype(np.int64) - low] = WRITTEN
        return states

    def rows_of(self, begin: int, end: int) -> tuple[list[int], Rows]:
        """The rows of the written chunks [begin, end), by chunk; and where each chunk's begin, with an end behind."""
        low, high = begin - self.begin, end - self.begin
        where = _between(self.row_chunks, low, high)
        bounds = np.searchsorted(self.row_chunks[where], np.arange(low, high + 1, dtype=np.uint32))
        return bounds.tolist(), self.rows[where]

    def newest_of(self, begin: int, end: int) -> Rows:
        """NEWEST of the written chunks [begin, end), one for each."""
        return self.newest[_between(self.newest_chunks, begin - self.begin, end - self.begin)]

    @property
    def held_bytes(self) -> int:
        """What its arrays take; `cleared` nothing, where one byte stands for all."""
        cleared = self.cleared.nbytes if any(self.cleared.strides) else 0
        arrays = (self.row_chunks, self.rows, self.frames, self.newest_chunks, self.newest)
        return cleared + sum(each.nbytes for each in arrays)


def _between(ascending: Chunks, low: int, high: int) -> slice:
    first, last = np.searchsorted(ascending, np.array((low, high), dtype=np.uint32)).tolist()
    return slice(first, last)


class Overlay:
    """The windows of some layers over a volume of `chunk_count` chunks; any thread may ask."""

    def __init__(self, layers: Layers, chunk_count: int, window_chunks: int | None = None) -> None:
        most = WIDE_CHUNKS if layers.row_count <= ROWS_WIDE else WINDOW_CHUNKS
        self.layers = layers
        self.window_chunks = window_chunks or min(max(1, chunk_count), most)
        self._chunk_count = chunk_count
        self._lock = threading.Lock()
        self._windows: OrderedDict[int, Window] = OrderedDict()

    def window_of(self, chunk: int) -> Window:
        """The window with `chunk` in it."""
        number = chunk // self.window_chunks
        with self._lock:
            window = self._windows.get(number)
            if window is None:
                begin = number * self.window_chunks
                window = build_window(self.layers, begin, min(begin + self.window_chunks, self._chunk_count))
                self._windows[number] = window
                self._forget()
            self._windows.move_to_end(number)
            return window

    def _forget(self) -> None:
        """Let go of the windows that weren't asked for the longest, as far as there are too many (O3)."""
        held_bytes = sum(each.held_bytes for each in self._windows.values())
        while len(self._windows) > WINDOWS_MAX and held_bytes > WINDOWS_BYTES:
            held_bytes -= self._windows.popitem(last=False)[1].held_bytes

    def alike(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, state) of consecutive chunks of one state in [begin, end); neighbours differ."""
        return coalesced(self._pieces(begin, end))

    def _pieces(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """A step at a time; neighbours of two steps may be alike."""
        while at < end:
            window = self.window_of(at)
            last = min(end, window.end, at + STEP_CHUNKS)
            yield from alike(window.states(at, last), at)
            at = last


def coalesced(pieces: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Consecutive (begin, end, state), those of one state beside each other as one."""
    held: tuple[int, int, int] | None = None
    for begin, end, state in pieces:
        if held is not None and held[2] == state:
            held = (held[0], end, state)
            continue
        if held is not None:
            yield held
        held = (begin, end, state)
    if held is not None:
        yield held


def alike(states: npt.NDArray[np.uint8], first: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, state) of neighbouring chunks of one state; the first chunk's number is `first`."""
    edges = [0, *(np.flatnonzero(states[1:] != states[:-1]) + 1).tolist(), len(states)]
    for begin, end in pairwise(edges):
        yield first + begin, first + end, int(states[begin])


def build_window(layers: Layers, begin: int, end: int) -> Window:
    """The overlay of the chunks [begin, end), newest part first."""
    builder = _Builder(begin, end)
    for ordinal in reversed(layers.within(begin, end)):
        builder.take(ordinal, layers.index(ordinal), layers.cut(ordinal))
    return builder.build()


class _Pile:
    """Arrays of one kind that become one; those of small parts on the way, lest each stays an object."""

    def __init__(self, kind: npt.DTypeLike) -> None:
        self._arrays: list[npt.NDArray[Any]] = [np.zeros(0, dtype=kind)]
        self._last: list[npt.NDArray[Any]] = []

    def add(self, array: npt.NDArray[Any]) -> None:
        """Take another one."""
        self._last.append(array)
        if len(self._last) >= JOINED_PARTS:
            self._arrays.append(np.concatenate(self._last))
            self._last.clear()

    def joined(self) -> npt.NDArray[Any]:
        """All of them."""
        return np.concatenate([*self._arrays, *self._last])


@dataclass(slots=True)
class _Builder:
    """The window while parts are laid beneath each other."""

    begin: int
    end: int
    resolved: npt.NDArray[np.uint16] = field(init=False)
    cleared: npt.NDArray[np.uint8] = field(init=False)
    _rows: _Pile = field(default_factory=lambda: _Pile(ROW))
    _frames: _Pile = field(default_factory=lambda: _Pile(FRAME))
    _row_chunks: _Pile = field(default_factory=lambda: _Pile(np.uint32))
    _newest: _Pile = field(default_factory=lambda: _Pile(NEWEST))
    _newest_chunks: _Pile = field(default_factory=lambda: _Pile(np.uint32))
    _frame_count: int = 0

    def __post_init__(self) -> None:
        self.resolved = np.zeros(self.end - self.begin, dtype=np.uint16)
        self.cleared = np.zeros(self.end - self.begin, dtype=np.uint8)

    def take(self, ordinal: int, index: SegmentIndex, cut: int) -> None:
        """Lay one part beneath those taken before."""
        first, last = (int(place) for place in np.searchsorted(index.chunks, np.array([self.begin, self.end], "<u8")))
        if first < last:
            self._take_writes(ordinal, index, first, last)
        if len(index.runs):
            self._take_runs(index)
        if cut != NO_CUT and cut < self.end:
            self._clear(max(cut, self.begin) - self.begin, self.end - self.begin, DISCARDED)

    def _take_writes(self, ordinal: int, index: SegmentIndex, first: int, last: int) -> None:
        chunks = (index.chunks[first:last] - np.uint64(self.begin)).astype(np.int64)
        rows = index.rows[first:last]
        resolved = self.resolved[chunks]
        wins: Masks = (rows["mask"] & ~resolved).astype(np.uint16, copy=False)
        self.resolved[chunks] = resolved | rows["mask"]
        fresh = np.flatnonzero(resolved == 0)
        if len(fresh):
            newest = np.empty(len(fresh), dtype=NEWEST)
            newest["part"], newest["hash"] = ordinal, rows["hash"][fresh]
            self._newest.add(newest)
            self._newest_chunks.add(chunks[fresh].astype(np.uint32))
        kept = np.flatnonzero(wins)
        if len(kept):
            self._keep(ordinal, index, chunks[kept], rows[kept], wins[kept])

    def _keep(self, ordinal: int, index: SegmentIndex, chunks: npt.NDArray[np.int64], rows: Rows, wins: Masks) -> None:
        used, slots = np.unique(rows["frame"], return_inverse=True)
        frames = np.empty(len(used), dtype=FRAME)
        frames["part"], frames["number"] = ordinal, used
        for name in FRAME_ROW.names or ():
            frames[name] = index.frames[name][used]
        taken = np.empty(len(rows), dtype=ROW)
        taken["slot"], taken["wins"] = slots + self._frame_count, wins
        taken["page"], taken["mask"] = rows["page"], rows["mask"]
        self._rows.add(taken)
        self._row_chunks.add(chunks.astype(np.uint32))
        self._frames.add(frames)
        self._frame_count += len(frames)

    def _take_runs(self, index: SegmentIndex) -> None:
        """Later runs of a part come later in its events: zeroes behind discards."""
        runs = index.runs[(index.runs["end"] > self.begin) & (index.runs["begin"] < self.end)]
        begins = np.maximum(runs["begin"].astype(np.int64) - self.begin, 0)
        ends = np.minimum(runs["end"], np.uint64(self.end)).astype(np.int64) - self.begin
        for kind in np.unique(runs["kind"])[::-1].tolist():
            same = runs["kind"] == kind
            self._clear_runs(begins[same], ends[same], kind)

    def _clear_runs(self, begins: Places, ends: Places, kind: int) -> None:
        low, high = int(begins.min()), int(ends.max())
        if len(begins) <= max(_RUNS_ONE_BY_ONE, (high - low) // _CHUNKS_A_RUN):
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                self._clear(begin, end, kind)
            return
        for at in range(low, high, WINDOW_CHUNKS):
            last = min(at + WINDOW_CHUNKS, high)
            here = (begins < last) & (ends > at)
            self._clear(at, last, kind, _inside(begins[here] - at, ends[here] - at, last - at))

    def _clear(self, begin: int, end: int, kind: int, among: npt.NDArray[np.bool_] | None = None) -> None:
        """What is open of the places [begin, end), or of those `among` them."""
        resolved = self.resolved[begin:end]
        rest = resolved != ALL_PAGES
        if among is not None:
            rest &= among
        self.cleared[begin:end][rest] = kind
        resolved[rest] = ALL_PAGES

    def build(self) -> Window:
        """The window; rows by chunk, and the newest first within one."""
        return Window(
            self.begin, self.end, *_by_chunk(self._row_chunks, self._rows), self._frames.joined(),
            *_by_chunk(self._newest_chunks, self._newest), _packed(self.cleared),
        )  # fmt: skip


def _packed(cleared: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """One byte that stands for all, where all are alike."""
    if not len(cleared) or cleared.min() != cleared.max():
        return cleared
    return np.broadcast_to(cleared[:1].copy(), cleared.shape)


def _by_chunk(chunks: _Pile, rows: _Pile) -> tuple[Chunks, Rows]:
    """Both joined, and ordered by chunk; rows of one chunk stay in their order."""
    joined = chunks.joined()
    order = np.argsort(joined, kind="stable")
    return joined[order], rows.joined()[order]


def _inside(begins: Places, ends: Places, length: int) -> npt.NDArray[np.bool_]:
    """Which of the places [0, length) lie in one of the ranges."""
    edges = np.zeros(length + 1, dtype=np.int32)
    np.add.at(edges, np.maximum(begins, 0), 1)
    np.add.at(edges, np.minimum(ends, length), -1)
    inside: npt.NDArray[np.bool_] = np.cumsum(edges[:-1], dtype=np.int32) > 0
    return inside
