"""One round of a group: settle what is open, cut all its volumes at one instant, publish each.

First station of the source host: cut -> extract -> publish. A volume by itself is a group of one, without a name.

    settle    every member's last delta is in the log; else there is no cut (D2 of decide)
    cut       hooks freeze; one CutRequest for all members, each with its Prepared row in the same switch; thaw
    publish   each member on its own stream; a member that didn't change keeps its N, and its target is dropped

A named group's commits carry GroupCut: the group's UUID, the cut's timestamp as its number, and {member: its N at this
cut}. All of it follows from the catalogue, so whoever resumes after a crash writes the same bytes.

Invariants
  G1  A cut that finds nothing changed makes nothing; its instant is one at which the log held everything.
  G2  A labelled cut is published even when nothing changed.
  G3  A cut of which a member turned out void makes no group's point: what is committed of it later carries no GroupCut,
      and the member's number comes again with another cut.
  G4  A round ends with a cut that each member's log has, or that was found unchanged: one that was let go of, since
      the log had lost its end, is made again.
  G5  A job that was killed is finished by its like, by what the catalogue has: a cut under its labels that waits, and
      the volumes of that instant that are published already.
  G6  A group's cut is of the members that are there, and its GroupCut names those: one that is deleted leaves, one that
      is made (again) joins between two cuts, when nothing of an earlier one is under way. So each point of the group
      still is one instant of all that it names; a point from before has the former members.
  G7  A group of which one member is refused takes no other member's epoch: who can't publish the whole fences nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

from agent.append import LogAwayError
from agent.context import Context
from agent.decide import RefusedError
from agent.hooks import Hooks
from agent.publish import VolumePublisher
from agent.rows import cuts_with
from agent.transmit import GroupOf, StoppedError
from replicator.errors import NotFoundError, ReplicatorError, UnavailableError
from replicator.events.bodies import GroupCut, PointLabelled, VolumeAttested
from replicator.events.state import StreamState
from replicator.history.points import Consistency
from replicator.pool.catalogue_schema import Prepared, Purpose, Role
from replicator.pool.interface import CutMade, CutRequest
from replicator.pool.view import CatalogueView

CUTS_MAX = 4
"""Of one round: a second one is needed when the log turns out to have lost its end, more when it does so again."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round came to: the cut's instant, and whether it found changes; each member's tail."""

    timestamp_ns: int
    made: bool
    tails: dict[UUID, StreamState]
    failed: dict[UUID, ReplicatorError] = field(default_factory=dict)


class GroupPublisher:
    """The volumes that are cut together; for one thread."""

    def __init__(
        self, context: Context, members: Sequence[UUID], *, name: str = "", hooks: Hooks | None = None
    ) -> None:
        self._context, self._name, self._hooks = context, name, hooks or Hooks()
        self.members = {uuid: VolumePublisher(context, uuid) for uuid in sorted(members, key=lambda each: each.int)}
        self.refused: dict[UUID, RefusedError] = {}
        self._settled: set[UUID] = set()  # who was, at the last time, all of the group

    def settle_down(self) -> dict[UUID, StreamState]:
        """Bring every member's open transaction into the log."""
        group: GroupOf | None = self._group if self._name else None
        self.refused, tails = self._refused_ahead(), {}
        if self.refused:
            raise next(iter(self.refused.values()))
        for uuid, member in self.members.items():
            try:
                tails[uuid] = member.settle_down(group)
                self._context.agreed(self._context.pool(), uuid)
            except RefusedError as error:
                self.refused, self._settled = {uuid: error, **self._refused(uuid)}, set()
                raise
        self._settled = set(self.members)
        return tails

    def _refused_ahead(self) -> dict[UUID, RefusedError]:
        """G7: looked at before any of them takes an epoch, which they all have once they settled together."""
        if len(self.members) == 1 or self._settled == set(self.members):
            return {}
        looked = ((uuid, member.refusal()) for uuid, member in self.members.items())  # whatever hinders it is raised
        return {uuid: refusal for uuid, refusal in looked if refusal is not None}

    def _refused(self, known: UUID) -> dict[UUID, RefusedError]:
        """The other members that may not be published either, so that each hears what it is refused for itself."""
        found = {}
        for uuid, member in self.members.items():
            with suppress(ReplicatorError):
                if uuid != known and (refusal := member.refusal()) is not None:
                    found[uuid] = refusal
        return found

    def round(self, labels: tuple[str, ...] = ()) -> Round:
        """Settle, cut, publish."""
        return self._round(labels, self.settle_down, {})

    def round_each(self, labels: tuple[str, ...] = ()) -> tuple[Round | None, Round | None]:
        """As `round`, for a job that ends: who can't be published leaves, and the others go on; `failed` says why.

        Before it (None, if there is none) the round that a job under the same labels was killed in: what it had cut is
        published, and isn't cut again under a label that names one point (G5). Where nobody is left the first one's
        error is raised; so is whatever concerns them all.
        """
        failed: dict[UUID, ReplicatorError] = {}
        finished = self._finish(labels, failed)
        return finished, self._round(labels, lambda: self._settle_each(failed), failed) if self.members else None

    def _finish(self, labels: tuple[str, ...], failed: dict[UUID, ReplicatorError]) -> Round | None:
        """G5: the round that was begun, and the members that were in its cut are gone; None where a cut was lost."""
        view = self._context.pool().view()
        waiting = [cut for uuid in self.members for cut in view.snapshots_of(uuid, Purpose.TARGET)]
        cut_ns = next((cut.timestamp_ns for cut in waiting if labels and set(labels) <= set(cut.labels)), None)
        if cut_ns is None:
            return None
        begun = {cut.volume for cut in waiting if cut.timestamp_ns == cut_ns}
        for uuid in self.members:
            position = view.position(uuid, Role.PUBLISHED)
            if position is not None and position.timestamp_ns == cut_ns:
                begun.add(uuid)
        tails = self._settle_each(failed)
        if any(member.lost_cut for member in self.members.values()):  # G4: all are cut anew
            return None
        self.only(begun)
        return Round(cut_ns, True, {uuid: tail for uuid, tail in tails.items() if uuid in begun}, failed)

    def _round(
        self,
        labels: tuple[str, ...],
        settle: Callable[[], dict[UUID, StreamState]],
        failed: dict[UUID, ReplicatorError],
    ) -> Round:
        tails = settle()
        for _ in range(CUTS_MAX):
            with self._hooks.frozen(self._context.report) as consistency:
                made = self._cut(tails, labels, consistency)
            if not made.made:
                return Round(made.timestamp_ns, False, tails, failed)
            tails = settle()
            if not any(member.lost_cut for member in self.members.values()):  # G4
                return Round(made.timestamp_ns, True, tails, failed)
        raise LogAwayError("the log changes under our hands: cuts are lost one after the other")

    def _settle_each(self, failed: dict[UUID, ReplicatorError]) -> dict[UUID, StreamState]:
        tails = {}
        for uuid, member in list(self.members.items()):
            try:
                tails[uuid] = member.settle_down(self._group if self._name else None)
                self._context.agreed(self._context.pool(), uuid)
            except (UnavailableError, StoppedError):
                raise
            except ReplicatorError as error:
                failed[uuid] = error
                self.only({uuid})
        if not self.members:
            raise next(iter(failed.values()))
        return tails

    def _cut(self, tails: dict[UUID, StreamState], labels: tuple[str, ...], consistency: Consistency) -> CutMade:
        pool = self._context.pool()
        view = pool.view()
        bases = [base_of(view, uuid) for uuid in self.members]
        known = tuple(each for each in bases if each is not None)
        request = CutRequest(
            self._context.new_uuid(),
            tuple(self.members),
            Purpose.TARGET,
            labels,
            consistency,
            unless_equal=known if len(known) == len(bases) and not labels else (),
            prepared=tuple(
                Prepared(uuid, tails[uuid].timeline, tails[uuid].next_number, self._context.new_uuid(), base, 0, 0, 0)
                for uuid, base in zip(self.members, bases, strict=True)
            ),
        )
        return pool.cut(request)

    def _group(self, view: CatalogueView, prepared: Prepared) -> GroupCut | None:
        """The group's part of the commit of `prepared`; None where a member of the cut turned out void (G3)."""
        if not cuts_with(view, prepared):
            return None
        members = tuple((uuid, self._number_at(view, uuid, prepared)) for uuid in self.members)
        return GroupCut(uuid5(view.pool.uuid, f"group {self._name}"), prepared.timestamp_ns, members)

    def _number_at(self, view: CatalogueView, uuid: UUID, cut: Prepared) -> int:
        """The member's N at this cut: what it prepared in it, unless that equals its last one."""
        prepared, position = view.prepared_of(uuid), view.position(uuid, Role.PUBLISHED)
        last = position.number if position else 0
        if prepared is None or prepared.timestamp_ns != cut.timestamp_ns:
            return last
        there = {each.dev_id: each for each in view.snapshots_of(uuid, hidden=True)}
        base = None if prepared.base_dev_id is None else there.get(prepared.base_dev_id)
        target = there.get(prepared.target_dev_id)
        if base is None or target is None:
            return prepared.number
        both = self._context.pool().facts([base.dev_id, target.dev_id])
        same = len({each.root for each in both.values()}) == 1 and base.size_bytes == target.size_bytes
        return last if same and not target.labels else prepared.number

    def say(self, uuid: UUID, body: PointLabelled | VolumeAttested) -> None:
        """Append one fact about a point of a member's."""
        self.members[uuid].say(body, self._group if self._name else None)

    def rebase(self, uuid: UUID, act: Callable[[Context], str]) -> str:
        """Have the pool's history of a member changed between two rounds; what was done.

        Fails it in the middle, the log may have it all the same: what was known of that stream counts no longer. What
        is known of the others' does: who is fenced there stays fenced.
        """
        self.look_again()
        try:
            return act(self._context)
        finally:
            if uuid in self.members:  # else it was deleted meanwhile
                self.members[uuid] = self.members[uuid].begun_anew()
            self._settled = set()

    def join(self, members: Sequence[UUID]) -> None:
        """Cut these with the others from now on (G6)."""
        self.settle_down()
        both = {uuid: VolumePublisher(self._context, uuid) for uuid in members} | self.members
        self.members = {uuid: both[uuid] for uuid in sorted(both, key=lambda each: each.int)}

    def look_again(self) -> None:
        """Read every member's tail again before the next step."""
        for member in self.members.values():
            member.look_again()

    def only(self, gone: set[UUID]) -> None:
        """Go on without these."""
        for uuid in gone & self.members.keys():
            self.members.pop(uuid).close()

    def sync(self) -> None:
        """Make what was sent durable."""
        for member in self.members.values():
            member.sync()

    def close(self) -> None:
        """Let go of the log."""
        for member in self.members.values():
            member.close()


def base_of(view: CatalogueView, uuid: UUID) -> int | None:
    """The snapshot that the next delta stands on; None where there is none: never published, or let go of."""
    position = view.position(uuid, Role.PUBLISHED)
    if position is None:
        return None
    for each in view.snapshots_of(uuid):
        if (each.number, each.digest) == (position.number, position.digest):
            return each.dev_id
    return None


def published_volumes(view: CatalogueView, names: Sequence[str]) -> list[UUID]:
    """The volumes of these names, or all but replicas; NotFoundError names those there are."""
    if names:
        return [view.volume(name).uuid for name in dict.fromkeys(names)]
    found = [each.uuid for each in view.volumes if view.position(each.uuid, Role.APPLIED) is None]
    if not found:
        mend = "create one: replicator volume create POOL NAME --size SIZE"
        raise NotFoundError("the pool has no volume to publish", mend=mend)
    return found


def points_of(done: Round, labels: Sequence[str]) -> list[dict[str, Any]]:
    """A round's restore points as plain objects, a line each of `agent publish` and `agent snapshot`."""
    return [
        {
            "volume": tail.name,
            "number": tail.committed.number,
            "timeline": tail.committed.timeline,
            "timestamp_ns": done.timestamp_ns,
            "changed": done.made,
            "labels": list(labels),
        }
        for tail in done.tails.values()
        if tail.committed is not None
    ]
