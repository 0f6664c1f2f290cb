"""What an archive says of itself beside its source, so that nothing is trimmed there which it hasn't got.

Used by archive, which holds and tells; one for all volumes of one source.

Invariants
  R1  Before a volume's first event is copied, all of it is held: at its first timeline, from the beginning; but for R4.
  R2  A word that promises more than the archive has (it was emptied, or put back from an older copy) is taken back so.
  R3  A word never goes back to an earlier timeline otherwise.
  R4  A word that isn't taken (no right, no room, away) holds no copy up: `refusals` says why, until one is. But where
      the source or the archive can't be reached to hold a volume, nothing of that is begun: the next round asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from replicator.errors import ReplicatorError, UnavailableError
from replicator.events.state import StreamState
from replicator.log.errors import ForbiddenError
from replicator.log.interface import Log, Registration, Waiter

RENEW_S = 5.0
"""Between two registrations of one stream, taken or refused: a put each, in an object store a request."""


@dataclass(slots=True)
class ArchiveRegistration:
    """The registration of the archive `receiver`, as `name`, at `source`. For one thread."""

    source: Log
    receiver: UUID
    name: str
    waiter: Waiter
    clock_ns: Callable[[], int]
    refusals: dict[UUID, ReplicatorError] = field(default_factory=dict)
    _held: dict[UUID, int] = field(default_factory=dict)
    _asked_s: dict[UUID, float] = field(default_factory=dict)
    _told: dict[tuple[UUID, int], int] = field(default_factory=dict)
    _tried_s: dict[tuple[UUID, int], float] = field(default_factory=dict)

    def hold(self, volume: UUID, first_timeline: int, target: Log) -> None:
        """Until it is taken, before anything of `volume` is copied to `target`: hold what that hasn't got (R1, R2).

        UnavailableError where nothing of it may be copied yet (R4).
        """
        now_s = self.waiter.monotonic()
        if volume in self._held or now_s - self._asked_s.get(volume, float("-inf")) < RENEW_S:
            return
        try:
            self._hold(volume, first_timeline, target)
        except ReplicatorError as error:
            if not _is_away(error):
                self.refusals[volume] = error
            elif volume not in self._asked_s:  # else it was refused before, and the copy is on its way
                reason = f"nothing is copied before it is held against trimming: {error.message}"
                raise UnavailableError(reason, mend=error.mend or "take --no-register if it needn't be") from error
        self._asked_s[volume] = now_s

    def _hold(self, volume: UUID, first_timeline: int, target: Log) -> None:
        ours = [each for each in self.source.registrations(volume) if each.receiver == self.receiver]
        if ours and not any(_lacks(target, each) for each in ours):
            self._held[volume] = ours[0].timeline
        else:
            self._register(volume, first_timeline, 0, 0)
            self._held[volume] = first_timeline

    def tell(self, durable: StreamState, *, at_once: bool) -> None:
        """Say how far the archive stands, where that is due."""
        volume, timeline = key = durable.volume, durable.timeline
        if not durable.sequence or timeline < self._held.get(volume, 0):
            return
        now_s = self.waiter.monotonic()
        is_due = self._told.get(key) != durable.sequence and now_s - self._tried_s.get(key, float("-inf")) >= RENEW_S
        if not (at_once or is_due):
            return
        self._tried_s[key] = now_s
        try:
            self._register(volume, timeline, durable.committed.number if durable.committed else 0, durable.sequence)
        except ReplicatorError as error:
            self.refusals[volume] = error
            return
        self._told[key] = durable.sequence
        if volume in self._held:
            self._held[volume] = timeline

    def _register(self, volume: UUID, timeline: int, number: int, sequence: int) -> None:
        said = Registration(volume, self.receiver, self.name, timeline, number, sequence, self.clock_ns())
        self.source.register(said)
        self.refusals.pop(volume, None)


def _is_away(error: ReplicatorError) -> bool:
    """Whether trying again may do, without anybody's changing what may be done."""
    return isinstance(error, UnavailableError) and not isinstance(error, ForbiddenError)


def _lacks(target: Log, said: Registration) -> bool:
    """Whether `target` hasn't got what was said of it; one that can't be read hasn't."""
    try:
        return target.reader(said.volume, said.timeline).tail().sequence < said.sequence
    except UnavailableError:
        raise
    except ReplicatorError:
        return True
