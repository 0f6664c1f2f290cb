"""Reading back what a restore wrote: every piece, against the hash of what was written, or against the point itself.

Beneath restore, which asks for it when all of the target was written and synced.

    a piece that reads back otherwise       what follows
    written by this run                     DamageError: the disk lost or changed it
    written by an earlier run               somebody, or the disk, changed it since: it is written once more, synced and
                                            read again, and DamageError if it differs still
    the same, of a device that may not      ConflictError: somebody else's bytes aren't overwritten
    be overwritten

So whatever made a restore fail here, the next one of the same point meets it as an earlier run's, and mends it.

Invariants
  B1  In memory: 16 bytes a piece that this run wrote, and of what differs a span's pieces at a time.
  B2  What is written once more is synced and read again before it counts.

Failures: DamageError, ConflictError, DeviceError, and those of the point's disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from replicator.errors import ConflictError, DamageError, DeviceError
from replicator.events.digests import digest128
from replicator.repository.point import PointDisk
from replicator.repository.target import PlacedWriter

_DIGEST_BYTES = 16
_AHEAD = 16  # pieces that are read at once, or wait to be looked at
Progress = Callable[[int], None]


class NotAsWrittenError(DamageError):
    """The disk gave back something else than was written; a restore that may overwrite writes it once more."""


class ChangedSinceError(ConflictError):
    """Somebody's bytes stand where an interrupted restore had written; one that may overwrite writes it once more."""


@dataclass(frozen=True, slots=True)
class ReadBackSettings:
    """`span_bytes`: whole pieces, after which what differed is written and synced; `rewrite`: whether it may be."""

    piece_bytes: int
    span_bytes: int
    rewrite: bool


class ReadBack:
    """What a target must hold: noted piece by piece by who writes it from `begin_bytes` on, and held against it."""

    def __init__(self, disk: PointDisk, writer: PlacedWriter, begin_bytes: int, settings: ReadBackSettings) -> None:
        self._disk, self._writer, self._begin, self._settings = disk, writer, begin_bytes, settings
        self._piece_bytes = settings.piece_bytes
        self._digests = bytearray(-(-(disk.size_bytes - begin_bytes) // self._piece_bytes) * _DIGEST_BYTES)
        self._zeros = digest128(bytes(self._piece_bytes))

    def note(self, at: int, digest: bytes) -> None:
        """The hash of the piece that this run writes at `at`."""
        place = self._place(at)
        self._digests[place : place + _DIGEST_BYTES] = digest

    def note_zeros(self, at: int) -> None:
        """The same of a piece of zeros."""
        length = self._length(at)
        self.note(at, self._zeros if length == self._piece_bytes else digest128(bytes(length)))

    def check(self, executor: Executor, progress: Progress = lambda _: None) -> int:
        """Read all of it back; how many bytes of an earlier run were written once more (B2)."""
        size, rewritten = self._disk.size_bytes, 0
        progress(0)
        for begin in range(0, size, self._settings.span_bytes):
            end = min(begin + self._settings.span_bytes, size)
            changed = self._differing(executor, range(begin, end, self._piece_bytes), progress)
            if changed:
                self._write_again(executor, changed)
                rewritten += sum(map(self._length, changed))
        progress(size)
        return rewritten

    def _differing(self, executor: Executor, places: Iterable[int], progress: Progress = lambda _: None) -> list[int]:
        """Which of these pieces read back otherwise."""
        pending: deque[tuple[int, Future[bool]]] = deque()
        found: list[int] = []

        def look_at_first() -> None:
            at, future = pending.popleft()
            if not future.result():
                found.append(at)
            progress(at)

        for at in places:
            pending.append((at, executor.submit(self._is_equal, at)))
            if len(pending) >= _AHEAD:
                look_at_first()
        while pending:
            look_at_first()
        return found

    def _is_equal(self, at: int) -> bool:
        length, is_ours = self._length(at), at >= self._begin
        place = self._place(at)
        expected = bytes(self._digests[place : place + _DIGEST_BYTES]) if is_ours else self._of_the_point(at)
        if expected == self._zeros and self._writer.is_hole(at, at + length):
            return True
        try:
            found = digest128(self._writer.read(length, at))
        except DeviceError:
            if is_ours:
                raise
            return False  # a sector that can't be read may be one that can be written
        if found != expected and is_ours:
            raise self._damage(at)
        return found == expected

    def _write_again(self, executor: Executor, changed: list[int]) -> None:
        if not self._settings.rewrite:
            raise ChangedSinceError(
                f"{self._writer.name} at byte {changed[0]}: what an interrupted restore wrote was changed since",
                mend="see who uses it; with --overwrite what was changed is written once more",
            )
        for at in changed:
            self._writer.write(self._disk.pread(self._length(at), at), at)
        self._writer.flush()
        if still := self._differing(executor, changed):
            raise self._damage(still[0])

    def _damage(self, at: int) -> NotAsWrittenError:
        again = "restore once more" if self._settings.rewrite else "restore once more, with --overwrite"
        return NotAsWrittenError(
            f"{self._writer.name} at byte {at}: read back otherwise than it was written",
            mend=f"{again}: what differs is written again; if it ends so again, look at the disk, and take another",
        )

    def _of_the_point(self, at: int) -> bytes:
        return digest128(self._disk.pread(self._length(at), at))

    def _length(self, at: int) -> int:
        return min(self._piece_bytes, self._disk.size_bytes - at)

    def _place(self, at: int) -> int:
        return (at - self._begin) // self._piece_bytes * _DIGEST_BYTES
