"""A receiver's word beside the log: how far a volume is verified here, so that nothing is trimmed that it needs.

Renewed by the follower: after commits, though not more often than every RENEW_S, and every ALIVE_S while nothing
comes, so that its age tells the others how long this receiver is silent. The record is the log's (Registration), its
receiver the UUID of the replica's pool.

    dies …                        beside the log          what follows
    before a renewal              an older position       more is kept than is needed
    after it                      this position           -

Invariants
  G1  A position is registered only once it is durable in the pool: whoever trims up to it takes nothing from us.
  G2  A log that can't be written to (no right, away) stops nobody from applying: it is a `problem`, and tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from replicator.errors import ConflictError, FormatError, NotFoundError, ReplicatorError
from replicator.history.names import is_uuid
from replicator.history.resolve import NamedVolume, resolve_volume
from replicator.log.interface import Log, Registration
from replicator.pool.catalogue_schema import Position

RENEW_S = 5.0
"""Two small writes a volume in ten seconds: what is kept too much meanwhile is seconds of events."""

ALIVE_S = 60.0
"""A sign of life while nothing is applied; on S3 each one costs a request."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What this receiver said last: transaction `number`, at `at_ns`; `problem` where it couldn't."""

    number: int = 0
    at_ns: int | None = None
    problem: str | None = None


class Registrar:
    """Renews one volume's registration as `name`; for one thread."""

    def __init__(self, log: Log, name: str, clock_ns: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._log, self._name = log, name
        self._clock_ns, self._monotonic = clock_ns, monotonic
        self._said: Position | None = None
        self._said_s = float("-inf")
        self.registered = Registered()

    def renew(self, receiver: UUID, position: Position | None, *, at_once: bool = False) -> None:
        """Say where we are, if it is due; `at_once`: if it isn't what was said last (G1, G2)."""
        if position is None or not self._is_due(position, at_once):
            return
        self._said_s = self._monotonic()
        at_ns = self._clock_ns()
        place = position.timeline, position.number, position.sequence
        try:
            self._log.register(Registration(position.volume, receiver, self._name, *place, at_ns))
        except ReplicatorError as error:
            self.registered = Registered(self.registered.number, self.registered.at_ns, error.message)
            return
        self._said = position
        self.registered = Registered(position.number, at_ns)

    def _is_due(self, position: Position, at_once: bool) -> bool:
        moved = (
            self._said is None or self._said.sequence != position.sequence or self._said.timeline != position.timeline
        )
        if at_once:
            return moved
        return self._monotonic() - self._said_s >= (RENEW_S if moved else ALIVE_S)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A receiver that was struck off; `said` is what it said last, None where that couldn't be read."""

    receiver: UUID
    said: Registration | None = None


def forget_receiver(log: Log, volume: str, receiver: str) -> Forgotten:
    """Strike `receiver` (a name or a UUID) off for `volume`. NotFoundError names those there are.

    Where one of the registrations is damaged it takes a UUID, and FormatError says which: names can't be told then.
    """
    found = resolve_volume(volume, [NamedVolume(each.volume, each.name, each.host) for each in log.volumes()])
    try:
        known = log.registrations(found.uuid)
    except FormatError:
        if not is_uuid(receiver) or not log.forget(found.uuid, UUID(receiver)):
            raise
        return Forgotten(UUID(receiver))
    named = [each for each in known if receiver in (each.name, str(each.receiver))]
    if len(named) > 1:
        listed = "; ".join(str(each.receiver) for each in named)
        raise ConflictError(
            f"{receiver!r} is the name of {len(named)} receivers: {listed}", mend="write the UUID of one"
        )
    if not named:
        names = ", ".join(f"{each.name} ({each.receiver})" for each in known) or "none"
        raise NotFoundError(f"no receiver {receiver!r} is registered for {found.name}; there are: {names}")
    log.forget(found.uuid, named[0].receiver)
    return Forgotten(named[0].receiver, named[0])
