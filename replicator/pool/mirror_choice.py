"""Which of two copies of the metadata is the pool, when it is opened: a decision over what was seen of them, no I/O.

Asked by pool/metadata_device. The order of writing (pdata/mirror, M2) says that the first copy is ahead by one commit,
or equal, if none was lost; what stands elsewhere may contradict that.

    first     second    what else is known                                  used
    -         -                                                             neither: the error of the first
    good      -                                                             the first
    -         good                                                          the second
    equal     equal                                                         both
    another pool's                                                          refused
    id lower than that of the second                                        refused: nobody wrote them in that order
    same id   other sum `dirty`, of this boot, names the second only, and   refused: the first is an older copy, or
                        the first isn't the file that we opened last        another program wrote it
    otherwise                                                               the first: a commit was cut short between
                                                                            its two superblocks, or a kernel wrote it

Whether the copy that is used is of the catalogue's and the data's time is looked at behind it, as without a mirror
(pool/identity), and before the other one is brought up to date.

Failures: DamageError, whose `mend` says how either copy is chosen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from replicator.errors import DamageError, ReplicatorError
from replicator.pdata.mirror import Side
from replicator.thin.superblock import Superblock


@dataclass(frozen=True, slots=True)
class Seen:
    """One copy: its superblock and the sum of its block 0, or the `problem`; `opened` how often it was (0: unknown)."""

    name: str
    superblock: Superblock | None = None
    sum: int = 0
    opened: int = 0
    problem: ReplicatorError | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The copy that isn't used, if one isn't, and why."""

    behind: Side | None = None
    why: str = ""


def choose(first: Seen, second: Seen, dirty_sums: Collection[int]) -> Choice:
    """Which copies are used; `dirty_sums`: the superblocks that this boot's `dirty` names (none: nothing is known)."""
    ahead, behind = first.superblock, second.superblock
    if ahead is None or behind is None:
        return _choose_readable(first, second)
    if ahead.uuid != behind.uuid:
        raise DamageError(
            f"{first.name} is that of pool {UUID(bytes=ahead.uuid)}, but {second.name} is that of "
            f"{UUID(bytes=behind.uuid)}",
            mend=mend_by_hand(first.name, second.name),
        )
    if first.sum == second.sum:
        return Choice()
    if ahead.transaction_id < behind.transaction_id:
        raise DamageError(
            f"{first.name} is at transaction {ahead.transaction_id}, but its mirror {second.name} at "
            f"{behind.transaction_id}: it is an older copy, or another program wrote one of them",
            mend=mend_by_hand(first.name, second.name),
        )
    ours = first.sum in dirty_sums or second.sum not in dirty_sums or 0 < first.opened == second.opened
    if ahead.transaction_id == behind.transaction_id and not ours:
        raise DamageError(
            f"{second.name} is what was written last, and {first.name} is another state of the same transaction "
            f"{ahead.transaction_id}: it is an older copy, or another program wrote it",
            mend=mend_by_hand(first.name, second.name),
        )
    return Choice(Side.SECOND, f"{first.name} was written after it, at transaction {ahead.transaction_id}")


def mend_by_hand(first: str, second: str) -> str:
    """How people say which copy it is."""
    return f"to go on with {first}: mv {second} elsewhere; to go on with {second}: mv {first} elsewhere"


def _choose_readable(first: Seen, second: Seen) -> Choice:
    if first.superblock is None and second.superblock is None:
        assert first.problem is not None
        raise first.problem
    side, lost = (Side.FIRST, first) if first.superblock is None else (Side.SECOND, second)
    return Choice(side, "it can't be read" if lost.problem is None else lost.problem.message)
