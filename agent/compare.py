"""What differs between a volume and the log's last transaction, where no snapshot of that is left: by comparing hashes.

Beside delta, for a base that was dropped (`when_full`), a log that lost its end, and `agent rebase`. The log knows each
chunk that its transactions wrote by its content's hash, and each that they cleared; the target is read whole, once.

    the log says of a chunk     target reads zeros       target reads something
    written, with its hash      zeroed, or discarded     written, unless the hash is the same
    cleared                     -                        written
    never touched               -                        written
    not known (trimmed)         zeroed, or discarded     written

    discarded: nothing is mapped there, and no origin lies behind; zeroed: else

What is written travels as whole chunks: the log's pages aren't read.

Invariants
  C1  After the transaction every chunk that was compared equals the target, whatever it was: a hash that isn't known
      counts as another one.
  C2  The same log and target give the same chunks. Where the log was trimmed meanwhile there may be more; whoever
      resumes compares the bound.
  C3  Memory: two bits a chunk, where anything differs, and the overlay's windows (repository/overlay, O3).

Failures: those of delta, and of the log's readers (DamageError, ConflictError).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt

from agent.delta import ChunkList, Delta, PoolFiles, State
from replicator.blockdev.interface import BlockDevice
from replicator.events.digests import DIGEST_BYTES, digest128
from replicator.events.values import StateName, chunk_count_of
from replicator.history.lineage import Revision, absent, between
from replicator.history.plan import EmptyBase, Plan, SnapshotBase
from replicator.log.interface import Log
from replicator.repository.layers import collect, no_layers
from replicator.repository.logged import read_history
from replicator.repository.overlay import UNTOUCHED, WINDOW_CHUNKS, WRITTEN, Overlay
from replicator.units import CHUNK_BYTES

_READ_CHUNKS = 64  # read and hashed at once: 4 MiB

DISCARD, ZERO, WRITE = 1, 2, 3
"""What a chunk needs; 0: it is the same."""

Kinds = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Known:
    """What the log says of the chunks at one state; `is_whole`: it has everything since the volume's beginning."""

    overlay: Overlay
    is_whole: bool


def known_at(log: Log, volume: UUID, state: StateName, chunk_count: int) -> Known:
    """What `log` knows of `volume` at `state`: hashes from the indexes of its segments, no data."""
    history = read_history(log, volume)
    path = history.lineage.path(state.timeline, state.number)
    missing = absent(path, history.standing)
    floor = missing[-1].end - 1 if missing else 0
    base = SnapshotBase(Revision(missing[-1].timeline, floor), 0) if missing else EmptyBase()
    stretches = between(floor, path)
    if not stretches:
        return Known(Overlay(no_layers(), chunk_count), not missing)
    plan = Plan(Revision(state.timeline, state.number, state.digest), base, stretches)
    return Known(Overlay(collect(log, volume, plan, 0, None), chunk_count), not missing)


class ComparedDelta(Delta):
    """The chunks in which `target` differs from what the log knows; found when they are first asked for."""

    def __init__(
        self,
        files: PoolFiles,
        target: State,
        known: Known,
        *,
        origin: BlockDevice | None = None,
        stands: Callable[[], bool] = lambda: True,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`tell` is called after each 4 MiB that were read: signs of life, and it may raise to stop."""
        super().__init__(files, None, target, origin=origin, stands=stands)
        self._known, self._tell = known, tell
        self._chunk_count = chunk_count_of(target.size_bytes)
        self._window_chunks = min(known.overlay.window_chunks, WINDOW_CHUNKS)
        self._planes: dict[int, tuple[Kinds, Kinds]] | None = None
        self._found_count = 0

    def chunk_bound(self) -> int:
        """How many chunks differ."""
        self._compared()
        return self._found_count

    def removed(self, after: int = 0) -> Iterator[npt.NDArray[np.uint64]]:
        """Chunks from `after` on to discard."""
        yield from self._chunks(DISCARD, after)

    def zeroed(self, after: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Chunks from `after` on that are zeros now, and weren't, or perhaps weren't."""
        yield from self._chunks(ZERO, after)

    def kept(self, after: int, at_once: int) -> Iterator[ChunkList]:
        """Chunks from `after` on to write."""
        self._compared()
        for part in super().kept(after, WINDOW_CHUNKS):
            rest = part.only(self._kinds_of(part.chunks) == WRITE)
            for begin in range(0, len(rest), at_once):
                yield rest.only(slice(begin, begin + at_once))

    # -- what was found ----------------------------------------------------------------------------------------

    def _chunks(self, kind: int, after: int) -> Iterator[npt.NDArray[np.uint64]]:
        for window in sorted(self._compared()):
            begin = window * self._window_chunks
            found = np.flatnonzero(self._window(window) == kind).astype(np.uint64) + np.uint64(begin)
            found = found[found >= np.uint64(after)]
            if len(found):
                yield found

    def _kinds_of(self, chunks: npt.NDArray[np.uint64]) -> Kinds:
        kinds = np.zeros(len(chunks), dtype=np.uint8)
        windows = chunks // np.uint64(self._window_chunks)
        for window in np.unique(windows).tolist():
            if window in self._compared():
                here = windows == window
                places = (chunks[here] - np.uint64(window * self._window_chunks)).astype(np.int64)
                kinds[here] = self._window(window)[places]
        return kinds

    def _window(self, window: int) -> Kinds:
        high, low = self._compared()[window]
        length = min(self._window_chunks, self._chunk_count - window * self._window_chunks)
        found: Kinds = 2 * np.unpackbits(high, count=length) + np.unpackbits(low, count=length)
        return found

    # -- comparing ---------------------------------------------------------------------------------------------

    def _compared(self) -> dict[int, tuple[Kinds, Kinds]]:
        """The kinds by window, as two planes of bits; windows without a difference aren't in it (C3)."""
        if self._planes is None:
            self._planes = {}
            self._compare(self._planes)
        return self._planes

    def _compare(self, planes: dict[int, tuple[Kinds, Kinds]]) -> None:
        parts = super().kept(0, _READ_CHUNKS)
        part = next(parts, None)
        for window in range(-(-self._chunk_count // self._window_chunks)):
            begin = window * self._window_chunks
            end = min(begin + self._window_chunks, self._chunk_count)
            comparing = _Window(self._known, begin, end)
            while part is not None and len(part) and int(part.chunks[0]) < end:
                inside = int(np.searchsorted(part.chunks, np.uint64(end)))
                self._look(comparing, part.only(slice(inside)))
                part = part.only(slice(inside, None)) if inside < len(part) else next(parts, None)
            kinds = comparing.kinds
            if kinds.any():
                planes[window] = (np.packbits(kinds >> 1), np.packbits(kinds & 1))
                self._found_count += int(np.count_nonzero(kinds))

    def _look(self, window: _Window, part: ChunkList) -> None:
        rows = np.empty((len(part), CHUNK_BYTES), dtype=np.uint8)
        self.read_target(part, rows)
        window.take(part.chunks, rows)
        self._tell()


class _Window:
    """What the log knows of the chunks [begin, end), and what becomes of each."""

    def __init__(self, known: Known, begin: int, end: int) -> None:
        self._begin = begin
        overlay = known.overlay.window_of(begin)
        self._states = overlay.states(begin, end)
        self._written = np.flatnonzero(self._states == WRITTEN)
        self._hashes = np.ascontiguousarray(overlay.newest_of(begin, end)["hash"]).tobytes()
        self._unknown: npt.NDArray[np.bool_] = np.equal(self._states, WRITTEN)
        if not known.is_whole:
            self._unknown |= self._states == UNTOUCHED
        self.kinds: Kinds = np.where(self._unknown, np.uint8(DISCARD), np.uint8(0))

    def take(self, chunks: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint8]) -> None:
        """The content of some chunks."""
        something: npt.NDArray[np.bool_] = np.any(rows.view(np.uint64), axis=1)
        places = (chunks - np.uint64(self._begin)).astype(np.int64)
        among = np.searchsorted(self._written, places).tolist()
        for row, place in enumerate(places.tolist()):
            if not something[row]:
                self.kinds[place] = ZERO if self._unknown[place] else 0
            elif self._states[place] == WRITTEN and self._hash(among[row]) == digest128(rows[row].data):
                self.kinds[place] = 0
            else:
                self.kinds[place] = WRITE

    def _hash(self, ordinal: int) -> bytes:
        return self._hashes[ordinal * DIGEST_BYTES : (ordinal + 1) * DIGEST_BYTES]
