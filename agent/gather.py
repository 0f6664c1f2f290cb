"""The facts behind `agent status`: from the workers' state, the pool's catalogue and its numbers.

Called by the daemon's control socket, from another thread than the workers': everything read here is one reference, or
a value that is replaced whole. Where the pool's owner is away the workers' own knowledge remains.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from agent.config import AgentConfig
from agent.lastword import LastWord
from agent.meter import Instants, RoomMeter
from agent.plans import is_left_out
from agent.relief import low_blocks
from agent.status import AgentFacts, LogRoom, ReceiverFacts, Room, VolumeFacts
from agent.worker import GroupWorker
from replicator.errors import ReplicatorError
from replicator.events.state import StreamState
from replicator.history.protection import Failure
from replicator.log.interface import Registration
from replicator.log.opening import log_places
from replicator.pool.catalogue_schema import Position, Purpose, Role, Volume
from replicator.pool.interface import Pool, PoolStatus
from replicator.pool.view import CatalogueView

_COMING = "it isn't published yet: volumes that came are looked for every 10 s, and join a group between two cuts"


@dataclass(frozen=True, slots=True)
class Absent:
    """A name of the configuration, of a group or of `volumes`, that nothing in the pool has, since an instant."""

    name: str
    group: str
    since_ns: int


class Gatherer:
    """Remembers what the pool last said, for when it is away."""

    def __init__(self, path: str, log: str, when_full: str = "") -> None:
        self._path, self._log = path, log
        self._view: CatalogueView | None = None
        self._status: PoolStatus | None = None
        self._room, self._log_room = RoomMeter(), RoomMeter()
        self._log_bytes: tuple[int, int] | None = None
        self._when_full = when_full

    def sample(self, pool: Pool, now_s: float) -> None:
        """Look at the pool: its room, its volumes."""
        self._status, self._view = pool.status(), pool.view()
        self._room.add(now_s, self._status.data_free_blocks * self._status.block_bytes)

    def sample_log(self, now_s: float) -> None:
        """Look at the room that a directory log has; by a worker, since a file system that is away may not answer."""
        with contextlib.suppress(OSError):
            for place in log_places(self._log):
                found = os.statvfs(place)
                self._log_bytes = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
                self._log_room.add(now_s, self._log_bytes[0])

    def rooms(self) -> tuple[Room | None, LogRoom | None]:
        """How much there is, and how long it lasts."""
        room = log_room = None
        status = self._status
        if status is not None:
            size = status.block_bytes
            low_in_s = self._room.lasts_s(low_blocks(status) * size)
            free, total = status.data_free_blocks * size, status.data_blocks * size
            room = Room(free, total, self._room.lasts_s(), low_in_s, self._when_full)
        if self._log_bytes is not None:
            log_room = LogRoom(*self._log_bytes, self._log_room.lasts_s())
        return room, log_room

    def facts(self, pool: Pool | None, workers: Iterable[GroupWorker], now_s: float) -> AgentFacts:
        """The whole agent, now."""
        is_away = True
        with contextlib.suppress(ReplicatorError):
            if pool is not None:
                self.sample(pool, now_s)
                is_away = False
        status, view = self._status, self._view
        volumes = []
        for worker in workers:
            tails = worker.tails()
            for row in view.volumes if view else []:
                if view is not None and row.uuid in worker.plan.members:
                    changed = None if is_away or pool is None else self._has_changed(pool, view, row)
                    volumes.append(_volume(worker, view, row, tails.get(row.uuid), changed, now_s))
        exporter = None if status is None or is_away else _exporter(status)
        return AgentFacts(self._path, self._log, os.getpid(), exporter, tuple(volumes), *self.rooms())

    def with_unpublished(
        self,
        facts: AgentFacts,
        workers: Sequence[GroupWorker],
        config: AgentConfig,
        absent: Sequence[Absent],
        now_ns: int,
    ) -> AgentFacts:
        """`facts`, and what nobody publishes: volumes that no worker has, and names that nothing has."""
        planned, view = {uuid for worker in workers for uuid in worker.plan.members}, self._view
        coming, left_out = [], []
        for row in view.volumes if view else []:
            if view is not None and row.uuid not in planned and view.position(row.uuid, Role.APPLIED) is None:
                if is_left_out(config, row):
                    left_out.append(row.name)
                else:
                    coming.append(_unpublished(view, row, now_ns, Failure(now_ns, _COMING)))
        volumes = (*facts.volumes, *coming, *map(_absent, absent))
        return replace(facts, volumes=volumes, left_out=tuple(left_out))

    def exporter_of(self, pool: Pool) -> int | None:
        """The process that serves the disks; None where it is this one, or away."""
        with contextlib.suppress(ReplicatorError):
            return _exporter(pool.status())
        return None

    def unpublished(
        self,
        view: CatalogueView,
        now_ns: int,
        reason: str,
        mend: str | None,
        pid: int = 0,
        exporter: int | None = None,
        said: Mapping[UUID, LastWord] | None = None,
    ) -> AgentFacts:
        """What the catalogue tells while nothing is published, and the log `said`: since then nothing is sure."""
        volumes = []
        for row in view.volumes:
            if view.position(row.uuid, Role.APPLIED) is None:
                word = (said or {}).get(row.uuid, LastWord())
                volumes.append(_unpublished(view, row, now_ns, Failure(now_ns, reason, mend), word))
        return AgentFacts(self._path, self._log, pid, exporter, tuple(volumes))

    def _has_changed(self, pool: Pool, view: CatalogueView, volume: Volume) -> bool | None:
        """Whether the volume differs from its base; None where dirty mappings leave it open."""
        base = _base(view, volume.uuid)
        if base is None or self._status is None:
            return None
        with contextlib.suppress(ReplicatorError):
            found = pool.facts([volume.dev_id, base[0]])
            if len({each.root for each in found.values()}) > 1:
                return True
            return None if self._status.dirty_count else False
        return None


def _unpublished(
    view: CatalogueView, row: Volume, now_ns: int, why: Failure, word: LastWord | None = None
) -> VolumeFacts:
    """What the catalogue, and the log's last `word`, tell of a volume that nobody publishes."""
    word, position = word or LastWord(), view.position(row.uuid, Role.PUBLISHED)
    until = max(position.timestamp_ns if position else 0, word.equal_until_ns or 0)
    base, prepared = _base(view, row.uuid), view.prepared_of(row.uuid)
    return VolumeFacts(
        row.name,
        str(row.uuid),
        row.created_ns,
        0.0,
        timeline=position.timeline if position else 1,
        number=position.number if position else 0,
        equal_until_ns=until or None,
        failure=replace(why, since_ns=min(until or row.created_ns, now_ns)),
        waiting_number=prepared.number if prepared else None,
        base_dev_id=base[0] if base else None,
        base_since_ns=base[1] if base else None,
        receivers=receivers_of(word.receivers, None),
    )


def _absent(absent: Absent) -> VolumeFacts:
    """A volume that only the configuration knows."""
    where = f"group {absent.group} names it" if absent.group else "the configuration names it"
    mend = f"replicator volume create POOL {absent.name} --size SIZE; or take it out of the configuration, and restart"
    failure = Failure(absent.since_ns, f"{where}, and the pool has no such volume", mend)
    return VolumeFacts(absent.name, "", absent.since_ns, 0.0, failure=failure)


def _volume(
    worker: GroupWorker,
    view: CatalogueView,
    row: Volume,
    tail: StreamState | None,
    has_changed: bool | None,
    now_s: float,
) -> VolumeFacts:
    position: Position | None = view.position(row.uuid, Role.PUBLISHED)
    opened = tail.open if tail is not None else None
    base = _base(view, row.uuid)
    prepared = view.prepared_of(row.uuid)
    signs, schedule = worker.signs, worker.plan.schedule
    until = signs.equal_until.get(row.uuid) or (position.timestamp_ns if position else None) or None
    return VolumeFacts(
        row.name,
        str(row.uuid),
        row.created_ns,
        schedule.late_s,
        timeline=position.timeline if position else 1,
        number=position.number if position else 0,
        equal_until_ns=until,
        last_success_ns=worker.last_success_ns,
        failure=worker.failure_of(row.uuid),
        paused_since_ns=worker.paused_since_ns,
        resumed_ns=worker.resumed_ns,
        waiting_number=prepared.number if prepared else None,
        waiting_chunks=opened.counts.chunks if opened else 0,
        sent_bytes=worker.meter.total_bytes,
        rate_bytes_s=worker.meter.rate_bytes_s(now_s),
        has_changed=has_changed,
        base_dev_id=base[0] if base else None,
        base_since_ns=base[1] if base else None,
        group=worker.plan.name,
        schedule=str(schedule),
        silent_s=max(0.0, now_s - worker.beat_s) if worker.over is None else 0.0,
        receivers=receivers_of(signs.receivers.get(row.uuid, ()), signs.instants.get(row.uuid)),
    )


def receivers_of(registered: Iterable[Registration], instants: Instants | None) -> tuple[ReceiverFacts, ...]:
    """What each receiver said last, and since when there is more."""
    return tuple(
        ReceiverFacts(
            each.name,
            str(each.receiver),
            each.timeline,
            each.number,
            each.at_ns,
            instants.first_behind(each.number) if instants is not None else None,
        )
        for each in registered
    )


def _exporter(status: PoolStatus) -> int | None:
    return None if status.owner_pid == os.getpid() else status.owner_pid


def _base(view: CatalogueView, volume: UUID) -> tuple[int, int] | None:
    """dev_id and instant of the snapshot that the next delta stands on."""
    found = view.snapshots_of(volume, Purpose.BASE)
    return (found[-1].dev_id, found[-1].timestamp_ns) if found else None
