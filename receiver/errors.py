"""What stops a follower, as types; the log's and the chain's own errors stop it too.

type                  exit  meaning
ChunkMismatchError    3     a chunk reads otherwise than its event says: the replica, or the log, isn't what it was
VerifyError           3     what the replica holds isn't what the log says: which chunks of which point
UnknownChunksError    1     nothing differs, but of some chunks the log, which was trimmed, says nothing
DriftError            3     the replica isn't what the source attested, though every event was applied
ReplicaConflictError  4     the pool can't take the volume: its name is another's, or it is the source's own
RoomError             1     the transaction may need more room than the pool has (P8); it isn't begun
"""

from __future__ import annotations

from collections.abc import Sequence

from replicator.errors import ConflictError, DamageError, NoSpaceError, ReplicatorError

ANEW = (
    "make a new replica from the log: replicator pool create NEW_POOL --size SIZE,"
    " then replicator receiver run NEW_POOL --log LOG"
)
"""What mends a replica that isn't what the log says, whichever of its blocks are wrong (names: receiver/mends)."""

LOST_END = (
    "as long as nothing was published since, put the log's end back from another copy of it;"
    f" else nothing brings this replica on: {ANEW}."
    " What this one holds as snapshots stays: replicator points list POOL NAME"
)
"""What mends a replica that is ahead of its log: once the agent has appended another history, only a new replica."""

_NAMED_SPANS = 8


class ChunkMismatchError(DamageError):
    """Chunk `chunk` of transaction `number` doesn't have its hash after applying."""

    kind = "chunk-mismatch"

    def __init__(self, volume: str, number: int, chunk: int, expected: bytes, found: bytes) -> None:
        where = f"volume {volume}, transaction {number}, chunk {chunk}"
        super().__init__(
            f"{where}: expected the hash {expected.hex()} after applying, found {found.hex()}",
            mend=ANEW,
        )
        self.volume = volume
        self.number = number
        self.chunk = chunk


class VerifyError(DamageError):
    """Chunks of a point that don't read as the log says."""

    kind = "verify"

    def __init__(self, point: str, chunks: list[int], count: int) -> None:
        listed = ", ".join(map(str, chunks))
        more = f" … and {count - len(chunks)} more" if count > len(chunks) else ""
        super().__init__(
            f"{point}: {count} chunk{'' if count == 1 else 's'} differ from the log: {listed}{more}",
            mend=ANEW,
        )
        self.chunks = chunks
        self.count = count


class UnknownChunksError(ReplicatorError):
    """A point that can't be compared in full: that it is what the log says isn't known, nor that it isn't."""

    kind = "not-comparable"

    def __init__(self, point: str, compared: int, unknown: int) -> None:
        super().__init__(
            f"{point}: not comparable in full: {compared} of {compared + unknown} chunks were compared, none differs;"
            " what the log said of the others was trimmed",
            mend="name an archive that has the log's beginning (replicator log archive), or let the source tell hashes"
            " of the whole volume: replicator agent run POOL --log LOG --listen ADDRESS --attest 7d",
        )
        self.compared = compared
        self.unknown = unknown


class DriftError(DamageError):
    """Spans of the replica that read otherwise than the source attested."""

    kind = "drift"

    def __init__(self, volume: str, number: int, span_chunks: int, spans: Sequence[int], count: int) -> None:
        begins = ", ".join(str(span * span_chunks) for span in spans[:_NAMED_SPANS])
        more = f" … and {count - _NAMED_SPANS} more" if count > _NAMED_SPANS else ""
        what = f"{count} stretch{'' if count == 1 else 'es'} of {span_chunks} chunks"
        super().__init__(
            f"drift: {volume}@{number} isn't what its source attested: {what}, from chunk {begins}{more}",
            mend=f"replicator receiver verify POOL --log LOG {volume}@{number} tells whether replica or log is wrong",
        )
        self.volume = volume
        self.number = number


class ReplicaConflictError(ConflictError):
    """The pool holds something else under this name or UUID."""

    kind = "replica-conflict"


class RoomError(NoSpaceError):
    """A transaction's worst case doesn't fit."""

    def __init__(self, volume: str, number: int, what: str, needed: int, free: int, mend: str) -> None:
        super().__init__(
            f"volume {volume} waits for room: transaction {number} may need {needed} {what}, {free} are free",
            mend=mend,
        )
        self.needed = needed
        self.free = free
