"""A group's signs of life, and what its receivers say of themselves: beacons out, registrations in.

Beside the rounds of worker: what each volume was found equal to, when its beacon is due, and how far each receiver is.

Invariants
  G1  An instant stands in a beacon only with the transaction that the volume was found equal to at it (W3 of worker).
  G2  Registrations are asked for with each beacon, in the worker's thread: `status` never waits for the log.
  G3  They are for showing only: a damaged one, which any key may write, leaves what was known and breaks nothing off.
      Who trims by them refuses (log/interface, L10).
"""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from agent.append import log_errors
from agent.beacon import BeaconKeeper
from agent.context import Context
from agent.cut import GroupPublisher, Round
from agent.meter import Instants
from replicator.errors import FormatError
from replicator.events.state import StreamState
from replicator.events.values import StateName
from replicator.log.interface import Registration
from replicator.pool.catalogue_schema import Role


class Signs:
    """One group's; `receivers`, `instants` and `equal_until` are read by status, everything else is the worker's."""

    def __init__(self, context: Context, publisher: GroupPublisher, beacon_s: float) -> None:
        self._context, self._publisher = context, publisher
        self._keepers = {uuid: BeaconKeeper(context.log, context.clock, beacon_s) for uuid in publisher.members}
        self._equal_to: dict[UUID, StateName | None] = {}
        self.equal_until: dict[UUID, int] = {}
        self.receivers: dict[UUID, tuple[Registration, ...]] = {}
        self.instants = {uuid: Instants() for uuid in publisher.members}

    def due_s(self) -> list[float]:
        """When each beacon is due, on the monotonic clock."""
        return [keeper.due_s for keeper in self._keepers.values()]

    def found_equal(self, done: Round) -> None:
        """A round ended: each volume equals its tail at that instant."""
        for uuid in self._publisher.members:
            committed = done.tails[uuid].committed
            self.equal_until[uuid], self._equal_to[uuid] = done.timestamp_ns, committed
            if done.made:
                self._keepers[uuid].hurry()
                if committed is not None:
                    self.instants[uuid].add(committed.number, done.timestamp_ns)

    def postpone(self) -> None:
        """Nothing can be said now."""
        for keeper in self._keepers.values():
            keeper.postpone()

    def leave(self, gone: set[UUID]) -> None:
        """Go on without these."""
        for uuid in gone:
            self._keepers.pop(uuid, None)

    def write_due(self) -> list[UUID]:
        """Write what is due, and ask for the receivers; the volumes whose tail isn't ours any more."""
        now, taken = self._context.clock.monotonic(), []
        for uuid, keeper in self._keepers.items():
            if now < keeper.due_s:
                continue
            durable = self._publisher.members[uuid].durable
            until = self._known_equal(durable) if durable is not None else 0
            if durable is None or not until:
                keeper.postpone()
                continue
            if not keeper.write(durable, until):
                taken.append(uuid)
                continue
            with log_errors(), suppress(FormatError):  # G3
                self.receivers[uuid] = tuple(self._context.log.registrations(uuid))
            self._context.answered()
        return taken

    def _known_equal(self, durable: StreamState) -> int:
        """The latest instant at which the volume was found equal to the log's last transaction (G1); 0: none known."""
        uuid, committed = durable.volume, durable.committed
        if committed is None:
            return 0
        if uuid not in self.equal_until or self._equal_to.get(uuid) != committed:
            self.equal_until.pop(uuid, None)
            position = self._context.pool().view().position(uuid, Role.PUBLISHED)
            if position is None or (position.number, position.digest) != (committed.number, committed.digest):
                return 0
            self.equal_until[uuid], self._equal_to[uuid] = position.timestamp_ns, committed
        return self.equal_until[uuid]
