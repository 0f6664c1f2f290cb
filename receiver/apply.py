"""Applies a volume's events to its replica: a transaction becomes visible in one switch, or not at all.

Between follow (which hands in events that the chain accepted) and draft (where the bytes go). The device goes from n to
n + 1; data, mapping, log position, restore point and volume size are one superblock write (design: exactly once).

    event                   what happens                                                     switch
    VolumeCreated           the thin device and its rows                                     1
    TimelineStarted         the branch, the position on it; what the old one left open goes  1
    TransactionBegan        room looked for (P8); a draft over the head                      -
    Chunks...               into the draft; a step when it has grown to `apply_commit_bytes`  per step
    TransactionCommitted    the draft becomes the head; a snapshot of it if it is kept       1
    TransactionAborted      draft and staging go                                             1
    VolumeRenamed, PointLabelled, VolumeDeleted, TimelineEnded   rows                        1
    PublisherOpened, VolumeAttested   nothing: they are read again (receiver/attest compares) -

Steps. A draft that is too large for one commit goes into a hidden snapshot of the head (staging), with the chain's
state at that event as the position; in the final switch staging becomes the head. A step whose mappings don't fit one
switch goes there in parts, the position with the last: what a part did is done again, to the same end, after a death.

    dies …                          on disk                                  goes on
    before the first step           head = n                                 from TransactionBegan
    between parts of a step         head = n, staging somewhat ahead         from the step's first event, into staging
    after a step                    head = n, staging at the position        from there
    before the final switch         the same                                 the same
    after it                        head = n + 1; the old head hidden        from n + 1's next event

Invariants
  A1  No switch but the final one changes what the head reads.
  A2  After any error the applier is spent: a new one begins at the pool's position.
  A3  The pool holds a staging snapshot of the volume iff the position's state has an open transaction.
  A4  Labels, which others may give too, are read and put in one compare-and-swap; a name is read just before its row
      is put, since a compare-and-swap at each commit would let many volumes' followers starve each other.

Failures: ChunkMismatchError, RoomError, NoSpaceError, ReplicaConflictError, UnavailableError, and the pool's.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from receiver.blocks import StepBlocks
from receiver.dev_ids import DevIds
from receiver.disks import Disks
from receiver.draft import Draft
from receiver.errors import ReplicaConflictError
from receiver.records import (
    logged_group,
    logged_point,
    point_snapshot,
    position_row,
    staging_snapshot,
    storable,
)
from receiver.replica import is_deleted, metadata_used, replica_of
from receiver.room import blocks_needed, require_room, switch_limit
from receiver.steps import parts_of
from replicator.errors import ConflictError, UsageError
from replicator.events.bodies import (
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeAttested,
    VolumeCreated,
    VolumeDeleted,
    VolumeRenamed,
)
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.state import OpenTransaction, StreamState
from replicator.history.retention import DEFAULT_POLICY, RetentionPolicy, should_materialise
from replicator.pool.catalogue_schema import Branch, LoggedPoint, Position, Purpose, Snapshot, Volume
from replicator.pool.changes import Change, End, Put
from replicator.pool.interface import Filling, Lease, Pool, Switch
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import switched
from replicator.repository.head import head_snapshot
from replicator.units import GIB

_RANGES_MAX = 1 << 18  # ranges that a step unmaps: 4 MiB of them
_FREED_NAME_BYTES = 230  # what is put behind it makes 255 at most
_LABELLED_BACK_MAX = 1 << 16  # how far back a late label is looked for among the logged points


@dataclass(frozen=True, slots=True)
class ApplySettings:
    """What bounds a step, and which points become snapshots."""

    apply_commit_bytes: int = GIB
    policy: RetentionPolicy = DEFAULT_POLICY


class Applier:
    """Brings one volume's replica on, event by event, from where the pool's position says."""

    def __init__(self, pool: Pool, disks: Disks, volume: UUID, dev_ids: DevIds, settings: ApplySettings) -> None:
        self._pool, self._disks, self._ids, self._settings = pool, disks, dev_ids, settings
        self._replica = replica_of(pool.view(), volume)
        self.state = self._replica.state or StreamState.start(volume)
        self._began = self.state
        self._draft: Draft | None = None
        self._lease: Lease | None = None
        self._held = ExitStack()

    @property
    def position(self) -> Position | None:
        """What is durable."""
        return self._replica.position

    @property
    def name(self) -> str:
        """The volume, for messages."""
        return self._replica.volume.name if self._replica.volume else str(self.state.volume)

    def apply(self, event: Event, state: StreamState) -> None:
        """Take `event`, which led the chain to `state`; durable once its transaction is (A2)."""
        act: Callable[[Applier, Any, StreamState], None] = _ACTS[type(event.body)]
        act(self, event.body, state)
        self.state = state

    def refresh(self) -> None:
        """Look at the rows again: a person may have renamed the replica."""
        self._replica = replica_of(self._pool.view(), self.state.volume)

    def close(self) -> None:
        """Let go of what is held; what isn't durable is dropped."""
        self._draft = self._lease = None
        self._held.close()

    # -- facts -------------------------------------------------------------------------------------------------

    def _created(self, body: VolumeCreated, state: StreamState) -> None:
        uuid = state.volume
        if self._replica.volume is not None:
            raise ReplicaConflictError(
                f"{self._pool.path} holds the volume {body.name!r} ({uuid}) itself, so it can't be its replica",
                mend="give the receiver a pool of its own",
            )
        dev_id = self._ids.take()
        volume = self._named(Volume(uuid, "unnamed", dev_id, body.size_bytes, body.timestamp_ns), body.name)
        self._switch(Switch(create=(dev_id,)), Put(volume), *self._freed(body.name), self._position(state))

    def _started(self, body: TimelineStarted, state: StreamState) -> None:
        parent = body.parent
        branch = Branch(state.volume, state.timeline, parent.timeline, parent.number, parent.digest)
        named = self._named(self._volume(), body.name)
        self._drop_open(Put(branch), Put(named), *self._freed(body.name), self._position(state))

    def _renamed(self, body: VolumeRenamed, state: StreamState) -> None:
        named = self._named(self._volume(), body.name)
        self._switch(Switch(), Put(named), *self._freed(body.name), self._position(state))

    def _labelled(self, body: PointLabelled, state: StreamState) -> None:
        """A4: a retirement may hide the point meanwhile, a person label it."""

        def plan(view: CatalogueView) -> tuple[Switch, None]:
            return Switch(changes=(self._position(state), *self._labels(view, body))), None

        switched(self._pool, plan)
        self.refresh()

    def _labels(self, view: CatalogueView, body: PointLabelled) -> list[Change]:
        point, label, changes = body.point, storable([body.label]), list[Change]()
        logged = self._logged(point.timeline, point.number)
        if logged is not None and logged.digest == point.digest:
            changes.append(Put(replace(logged, labels=_with(logged.labels, label))))
        for each in view.snapshots_of(self.state.volume, Purpose.POINT, hidden=True):
            if (each.timeline, each.number, each.digest) == (point.timeline, point.number, point.digest):
                changes.append(Put(replace(each, labels=_with(each.labels, label))))
        return changes

    def _logged(self, timeline: int, number: int) -> LoggedPoint | None:
        position = self.position
        back = position.number - number + 1 if position else 0
        if not 0 < back <= _LABELLED_BACK_MAX:
            return None
        points = self._pool.points(self.state.volume, back, timeline)
        return next((each for each in points if each.number == number), None)

    def _noted(self, _: VolumeDeleted, state: StreamState) -> None:
        self._switch(Switch(), self._position(state))

    def _read_again(self, _: PublisherOpened | VolumeAttested, __: StreamState) -> None:
        """Nothing is kept of these but what the chain's state has."""

    # -- transactions ------------------------------------------------------------------------------------------

    def _begin(self, body: TransactionBegan, state: StreamState) -> None:
        """P8: what may not fit isn't begun."""
        require_room(self._pool.status(), self.name, body.number, body.chunk_bound, body.size_bytes)
        self._open_draft(state)

    def _wiped(self, body: ChunksDiscarded | ChunksZeroed, state: StreamState) -> None:
        self._ready().wipe(body)
        self._grown(state)

    def _written(self, body: ChunksWritten, state: StreamState) -> None:
        self._ready().write(body)
        self._grown(state)

    def _committed(self, body: TransactionCommitted, state: StreamState) -> None:
        opened = _open_of(self.state)
        draft = self._ready()
        filling = self._finished(draft)
        parts = parts_of(filling, switch_limit(self._pool.status()))
        for part in parts[:-1]:
            self._stage(draft, part, None)
        point, group = logged_point(state, opened, body), logged_group(body)
        try:
            self._become_head(draft, parts[-1], point, group, state)
        except ConflictError:
            if self._replica.staging is not None:
                raise
            self._stage(draft, parts[-1], None)  # somebody reads the head: go around it
            self._become_head(draft, Filling(parts[-1].dev_id), point, group, state)
        self.close()

    def _aborted(self, _: TransactionAborted | TimelineEnded, state: StreamState) -> None:
        self._drop_open(self._position(state))

    def _drop_open(self, *changes: Change) -> None:
        """What came of an open transaction goes, in the switch of `changes` (A3)."""
        self.close()
        staging = self._replica.staging
        if staging is None:
            self._switch(Switch(), *changes)
        else:
            self._switch(Switch(delete=(staging.dev_id,)), End(Snapshot, (staging.dev_id,)), *changes)

    # -- drafts and steps --------------------------------------------------------------------------------------

    def _ready(self) -> Draft:
        """The draft of the open transaction, opened again after a step or a restart."""
        return self._draft or self._open_draft(self.state)

    def _open_draft(self, state: StreamState) -> Draft:
        opened, volume = _open_of(state), self._volume()
        self._began = state
        dev_id = self._replica.staging.dev_id if self._replica.staging else volume.dev_id
        self._held = ExitStack()
        self._held.enter_context(self._disks.writing())
        self._lease = self._held.enter_context(self._pool.lease([dev_id]))
        need = blocks_needed(opened.chunk_bound, opened.size_bytes, self._pool.block_bytes)
        blocks = StepBlocks(self._pool, self._disks, dev_id, self._lease, need)
        self._held.callback(blocks.close)
        self._draft = Draft(blocks, self.name, opened.number, opened.size_bytes)
        if opened.size_bytes < volume.size_bytes:
            self._draft.shrink(volume.size_bytes, opened.size_bytes)
        return self._draft

    def _finished(self, draft: Draft) -> Filling:
        """What the draft comes to; the lease ends, so that the device may be filled."""
        filling = draft.finish()
        assert self._lease is not None
        self._lease.release()
        return filling

    def _grown(self, state: StreamState) -> None:
        """End the step if the draft is as large as one may be."""
        draft = self._ready()
        if draft.fresh_bytes < self._settings.apply_commit_bytes and draft.range_count < _RANGES_MAX:
            return
        filling = self._finished(draft)
        parts = parts_of(filling, switch_limit(self._pool.status()))
        for part in parts[:-1]:
            self._stage(draft, part, None)
        self._stage(draft, parts[-1], state)
        self.close()

    def _stage(self, draft: Draft, part: Filling, state: StreamState | None) -> None:
        """One part of a step into the staging snapshot; `state` with the last one (A3)."""
        changes: list[Change] = []
        staging = self._replica.staging
        snapshot: tuple[tuple[int, int], ...] = ()
        if staging is None:
            staging = staging_snapshot(self._ids.take(), self._began, _open_of(self._began))
            snapshot = ((staging.dev_id, self._volume().dev_id),)
            changes = [Put(staging), self._position(state or self._began)]
        elif state is not None:
            changes = [self._position(state)]
        with draft.blocks.named_by(part):
            self._switch(Switch(snapshot=snapshot, fill=(replace(part, dev_id=staging.dev_id),)), *changes)

    def _become_head(
        self, draft: Draft, part: Filling, point: LoggedPoint, group: tuple[Put, ...], state: StreamState
    ) -> None:
        """The final switch: what is staged, and `part`, is transaction n + 1 from now on (A1)."""
        self.refresh()
        volume, position, staging = self._volume(), self.position, self._replica.staging
        target = staging.dev_id if staging else volume.dev_id
        row = replace(volume, dev_id=target, size_bytes=point.size_bytes)
        changes: list[Change] = [Put(row), Put(point), *group, Put(position_row(state, point.timestamp_ns))]
        if staging is not None and position is not None:
            changes += [End(Snapshot, (staging.dev_id,)), Put(head_snapshot(volume, position))]
        snapshot: tuple[tuple[int, int], ...] = ()
        if self._is_kept(point):
            dev_id = self._ids.take()
            changes.append(Put(point_snapshot(dev_id, point)))
            snapshot = ((dev_id, target),)
        fill = (replace(part, dev_id=target),) if len(part.virtual_blocks) or len(part.unmapped) else ()
        with draft.blocks.named_by(part):
            self._switch(Switch(snapshot=snapshot, fill=fill), *changes)

    def _is_kept(self, point: LoggedPoint) -> bool:
        """Whether the transaction becomes a snapshot at once."""
        there = self._pool.view().snapshots_of(point.volume, Purpose.POINT)
        newest = there[-1].restore_point() if there else None
        used = metadata_used(self._pool.status())
        return should_materialise(point.restore_point(), newest, self._settings.policy, used)

    # -- rows --------------------------------------------------------------------------------------------------

    def _switch(self, switch: Switch, *changes: Change) -> None:
        self._pool.switch(replace(switch, changes=tuple(changes)))
        self.refresh()

    def _position(self, state: StreamState) -> Put:
        return Put(position_row(state, self.position.timestamp_ns if self.position else 0))

    def _volume(self) -> Volume:
        assert self._replica.volume is not None, "a stream begins with VolumeCreated"
        return self._replica.volume

    def _named(self, volume: Volume, name: str) -> Volume:
        """`volume` under `name`; ReplicaConflictError where another volume has it, or the catalogue can't hold it."""
        mend = f"replicator volume rename POOL {shlex.quote(name)} NEW, here or at the source"
        other = self._other_named(name)
        if other is not None and not is_deleted(self._pool.view(), other.uuid):
            raise ReplicaConflictError(
                f"{name!r} is the name of volume {other.uuid} in {self._pool.path}, and of {volume.uuid} in the log",
                mend=mend,
            )
        try:
            return replace(volume, name=name)
        except UsageError as error:
            raise ReplicaConflictError(f"volume {volume.uuid}: {error.message}", mend=mend) from error

    def _other_named(self, name: str) -> Volume | None:
        found = (each for each in self._pool.view().volumes if each.name == name and each.uuid != self.state.volume)
        return next(found, None)

    def _freed(self, name: str) -> tuple[Put, ...]:
        """Its name for a volume that takes the place of one that was deleted at the source, whose points stay."""
        other = self._other_named(name)
        if other is None:
            return ()
        short = name.encode()[:_FREED_NAME_BYTES].decode(errors="ignore").rstrip()
        return (Put(replace(other, name=f"{short}.deleted-{str(other.uuid)[:8]}")),)


def _open_of(state: StreamState) -> OpenTransaction:
    assert state.open is not None, "the chain lets nothing through that needs an open transaction without one"
    return state.open


def _with(labels: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return storable(dict.fromkeys((*labels, *more)))


_ACTS: dict[type[Any], Callable[[Applier, Any, StreamState], None]] = {
    VolumeCreated: Applier._created,
    TimelineStarted: Applier._started,
    PublisherOpened: Applier._read_again,
    TransactionBegan: Applier._begin,
    ChunksDiscarded: Applier._wiped,
    ChunksZeroed: Applier._wiped,
    ChunksWritten: Applier._written,
    TransactionCommitted: Applier._committed,
    TransactionAborted: Applier._aborted,
    VolumeRenamed: Applier._renamed,
    VolumeDeleted: Applier._noted,
    PointLabelled: Applier._labelled,
    VolumeAttested: Applier._read_again,
    TimelineEnded: Applier._aborted,
}
