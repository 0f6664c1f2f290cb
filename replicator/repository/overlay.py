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
  O3  Memory: at most 16 rows a chunk, WINDOW_CHUNKS chunks a window and WINDOWS_MAX windows; nothing a chunk is an
      object. An overlay of at most ROWS_WHOLE rows is one window.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from replicator.events.pages import ALL_PAGES, Masks
from replicator.log.index import DISCARDED, FRAME_ROW, SegmentIndex
from replicator.repository.layers import NO_CUT, Layers

WINDOW_CHUNKS = 1 << 20
"""Chunks of a window: 64 GiB of volume, some 30 MB where each was written once."""

ROWS_WHOLE = 1 << 22
"""Rows of an overlay that is one window, whatever the volume's size: at most 150 MB."""

WINDOWS_MAX = 4
"""Windows kept: reads that jump about a large volume build each anew when they need more."""

_RUNS_ONE_BY_ONE = 64  # beyond it, marking begins and ends and summing them up is quicker

ROW = np.dtype([("slot", "<u4"), ("page", "<u2"), ("mask", "<u2"), ("wins", "<u2")])
FRAME = np.dtype([("part", "<u4"), ("number", "<u4"), *((name, FRAME_ROW[name]) for name in FRAME_ROW.names or ())])
NEWEST = np.dtype([("part", "<u4"), ("hash", "V16")])

Rows = npt.NDArray[np.void]
Chunks = npt.NDArray[np.uint32]
"""Chunks by their place in the window."""

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
        states = np.where(self.cleared[low:high] == DISCARDED, HOLE, ZERO).astype(np.uint8)
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


def _between(ascending: Chunks, low: int, high: int) -> slice:
    first, last = np.searchsorted(ascending, np.array((low, high), dtype=np.uint32)).tolist()
    return slice(first, last)


class Overlay:
    """The windows of some layers over a volume of `chunk_count` chunks; any thread may ask."""

    def __init__(self, layers: Layers, chunk_count: int, window_chunks: int | None = None) -> None:
        whole = layers.row_count <= ROWS_WHOLE and chunk_count < 1 << 32
        self.layers = layers
        self.window_chunks = window_chunks or (max(1, chunk_count) if whole else WINDOW_CHUNKS)
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
                if len(self._windows) >= WINDOWS_MAX:
                    self._windows.popitem(last=False)
                self._windows[number] = window
            self._windows.move_to_end(number)
            return window


def build_window(layers: Layers, begin: int, end: int) -> Window:
    """The overlay of the chunks [begin, end), newest part first."""
    builder = _Builder(begin, end)
    for ordinal in range(len(layers) - 1, -1, -1):
        builder.take(ordinal, layers.index(ordinal), layers.cut(ordinal))
    return builder.build()


@dataclass(slots=True)
class _Builder:
    """The window while parts are laid beneath each other."""

    begin: int
    end: int
    resolved: npt.NDArray[np.uint16] = field(init=False)
    cleared: npt.NDArray[np.uint8] = field(init=False)
    _rows: list[Rows] = field(default_factory=list)
    _frames: list[Rows] = field(default_factory=list)
    _row_chunks: list[Chunks] = field(default_factory=list)
    _newest: list[Rows] = field(default_factory=list)
    _newest_chunks: list[Chunks] = field(default_factory=list)
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
            self._clear(slice(max(cut, self.begin) - self.begin, None), DISCARDED)

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
            self._newest.append(newest)
            self._newest_chunks.append(chunks[fresh].astype(np.uint32))
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
        self._rows.append(taken)
        self._row_chunks.append(chunks.astype(np.uint32))
        self._frames.append(frames)
        self._frame_count += len(frames)

    def _take_runs(self, index: SegmentIndex) -> None:
        """Later runs of a part come later in its events: zeroes behind discards."""
        runs = index.runs[(index.runs["end"] > self.begin) & (index.runs["begin"] < self.end)]
        begins = np.maximum(runs["begin"].astype(np.int64) - self.begin, 0)
        ends = np.minimum(runs["end"].astype(np.int64), self.end) - self.begin
        for kind in np.unique(runs["kind"])[::-1].tolist():
            alike = runs["kind"] == kind
            if int(alike.sum()) <= _RUNS_ONE_BY_ONE:
                for begin, end in zip(begins[alike].tolist(), ends[alike].tolist(), strict=True):
                    self._clear(slice(begin, end), kind)
            else:
                self._clear(_inside(begins[alike], ends[alike], len(self.resolved)), kind)

    def _clear(self, where: slice | npt.NDArray[np.int64], kind: int) -> None:
        resolved = self.resolved[where]
        cleared = self.cleared[where]
        self.cleared[where] = np.where(resolved == ALL_PAGES, cleared, np.uint8(kind))
        self.resolved[where] = ALL_PAGES

    def build(self) -> Window:
        """The window; rows by chunk, and the newest first within one."""
        frames = np.concatenate([np.zeros(0, dtype=FRAME), *self._frames])
        return Window(
            self.begin, self.end, *_by_chunk(self._row_chunks, self._rows, ROW), frames,
            *_by_chunk(self._newest_chunks, self._newest, NEWEST), self.cleared,
        )  # fmt: skip


def _by_chunk(chunks: list[Chunks], rows: list[Rows], kind: np.dtype[np.void]) -> tuple[Chunks, Rows]:
    """Both joined, and ordered by chunk; rows of one chunk stay in their order."""
    joined = np.concatenate([np.zeros(0, dtype=np.uint32), *chunks])
    order = np.argsort(joined, kind="stable")
    return joined[order], np.concatenate([np.zeros(0, dtype=kind), *rows])[order]


def _inside(begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """The places in [0, length) that lie in one of the ranges."""
    edges = np.zeros(length + 1, dtype=np.int32)
    np.add.at(edges, begins, 1)
    np.add.at(edges, ends, -1)
    return np.flatnonzero(np.cumsum(edges[:-1]) > 0)
