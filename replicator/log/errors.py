"""What a log's reader may meet, as types.

type           exit  meaning
SegmentError   3     a segment's bytes aren't what was written: where, volume, sequence, expected, found
LogGapError    3     a segment is missing, and later ones, or the beacon, show that it was there
LostEndError   3     the log ends before what a reader already has: it lost its end
TrimmedError   5     what was asked for was trimmed
PutUnknownError 1    an object's put failed so late that it may stand (inside the log room: becomes AppendUnknown)
ForbiddenError 1     the log is there, and its rights or a read-only disk don't allow it
"""

from __future__ import annotations

from uuid import UUID

from replicator.errors import DamageError, FormatError, NotFoundError, UnavailableError


class SegmentError(FormatError):
    """A damaged segment: `where` is its path."""

    kind = "segment"

    def __init__(self, path: str, volume: UUID, sequence: int, expected: str, found: str) -> None:
        where = f"segment {path} (volume {volume}, event {sequence})"
        super().__init__(where, expected, found, mend="put the segment back from another copy of the log")
        self.path = path
        self.volume = volume
        self.sequence = sequence


class LogGapError(DamageError):
    """Event `sequence` is missing, and `evidence` shows that it stood."""

    kind = "log-gap"

    def __init__(self, volume: UUID, timeline: int, sequence: int, path: str, evidence: str) -> None:
        where = f"volume {volume}, timeline {timeline}: event {sequence} is missing"
        mend = "put the segment back from another copy of the log"
        super().__init__(f"{where} (expected {path}, found {evidence})", mend=mend)
        self.sequence = sequence


class LostEndError(DamageError):
    """Event `sequence` was asked for, but the log ends at `end`."""

    kind = "log-lost-end"

    def __init__(self, volume: UUID, timeline: int, sequence: int, end: int) -> None:
        where = f"volume {volume}, timeline {timeline}"
        super().__init__(
            f"{where}: the log lost its end: expected events up to {sequence - 1} at least, found its end after {end}",
            mend="put it back from another copy of the log; replicator agent status says what the source still has",
        )
        self.sequence = sequence
        self.end = end


class TrimmedError(NotFoundError):
    """Event `sequence` was trimmed; the log begins after `start`."""

    kind = "trimmed"

    def __init__(self, volume: UUID, timeline: int, sequence: int, start: int) -> None:
        where = f"volume {volume}, timeline {timeline}"
        super().__init__(f"{where}: event {sequence} was trimmed; the log begins with event {start + 1}")
        self.sequence = sequence
        self.start = start


class PutUnknownError(UnavailableError):
    """An object may stand under its name, or not."""

    kind = "put-unknown"


class ForbiddenError(UnavailableError):
    """The log is there, and doesn't allow that; it may do once somebody changed its rights, or our key."""

    kind = "forbidden"
