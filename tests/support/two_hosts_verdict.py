"""How a history of two hosts may end: each volume converged, or stands stopped by an error that its history explains.

a source      publishes, and the log's last transaction is what it has; or pool and log tell two histories
a replica     holds the log's last transaction; or stands where the log doesn't go through (any more), and says so
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from replicator.events.state import decode_state
from replicator.log.errors import LogGapError
from replicator.pool.catalogue_schema import Position
from tests.support.two_hosts_replica import ReplicaHost
from tests.support.two_hosts_source import SourceHost
from tests.support.two_hosts_truth import Named, Violation

if TYPE_CHECKING:
    from tests.support.two_hosts import TwoHosts


def verdict(world: TwoHosts) -> None:
    """A Violation, unless all is as it may be."""
    for volume in world.plan.volumes:
        _verdict(world, volume)


def _verdict(world: TwoHosts, volume: UUID) -> None:
    last = world.truth.stream(volume).committed()
    winners = [each for each in world.sources if _is_fine(world, each, volume)]
    for source in winners:
        if last is None or world.truth.named[last.digest].content != bytes(source.content[volume]):
            raise Violation(f"{source.name} thinks that all is published, but the log's last isn't what it has")
        _require_tidy(world, source, volume)
    for source in world.sources:
        if not winners and _may_publish(world, source, volume):
            raise Violation(f"{source.name} doesn't publish: {world.errors.get(f'{source.name} {volume}')}")
    world.report.endings["published" if winners else "not published"] += 1
    for replica in world.replicas:
        _verdict_of(world, replica, volume, is_published=bool(winners))


def _is_fine(world: TwoHosts, source: SourceHost, volume: UUID) -> bool:
    at_work = any(each.worker.over is None and volume in each.volumes for each in source.agents)
    return at_work and world.errors[f"{source.name} {volume}"] is None


def _may_publish(world: TwoHosts, source: SourceHost, volume: UUID) -> bool:
    """Whether pool and log tell one history (design, "Both ends remember"), for all that is cut together."""
    (group,) = [each for each in source.groups() if volume in each]
    return all(_tell_one_history(world, source, each) for each in group)


def _tell_one_history(world: TwoHosts, source: SourceHost, volume: UUID) -> bool:
    view, stream = source.pool.real.view(), world.truth.stream(volume)
    last, opened = stream.committed(), stream.open_transaction()
    position, prepared = source.position(volume), view.prepared_of(volume)
    ours = prepared.transaction_uuid if prepared else None
    newest = world.truth.named[last.digest] if last else None
    if newest is None:
        return position is None and opened in (None, ours)
    if position is not None and newest.digest == position.digest:
        return opened in (None, ours)
    if newest.transaction == ours:
        return opened is None  # else another future of this pool has begun one, before it was rolled back or copied
    return _is_past_of(world, newest, position)


def _is_past_of(world: TwoHosts, newest: Named, position: Position | None) -> bool:
    """Whether the log's last transaction is one that the pool has published, before its last one."""
    held = world.truth.named.get(position.digest) if position else None
    while held is not None and held is not newest:
        held = world.truth.named[held.base] if held.base else None
    return held is newest


def _require_tidy(world: TwoHosts, source: SourceHost, volume: UUID) -> None:
    """Nothing is left over: one base, no prepared transaction, no cut but one that a refused volume's waits for."""
    view = source.pool.real.view()
    left = view.snapshots_of(volume, hidden=True)
    known = {each.dev_id for each in view.volumes} | {each.dev_id for each in view.snapshots}
    waiting = {each.target_dev_id for each in view.prepared}
    needless = [each for each in view.cuts if waiting.isdisjoint(each.dev_ids)]
    if len(left) != 1 or view.prepared_of(volume) or needless or set(source.pool.real.facts(())) != known:
        raise Violation(f"{source.name} leaves behind: {left}, {view.prepared}, {view.cuts}")


def _verdict_of(world: TwoHosts, replica: ReplicaHost, volume: UUID, *, is_published: bool) -> None:
    replica.check_points(volume)
    stream, position = world.truth.stream(volume), replica.position(volume)
    error = world.errors.get(f"{replica.name} {volume}")
    state = decode_state(position.chain_state) if position else None
    sequence = state.sequence if state else 0
    event = stream.at(sequence)
    is_there = event is not None and state is not None and event.digest == state.digest
    on_path = is_there or (sequence == stream.trimmed and (sequence == 0 or _is_edge(world, volume, state)))
    if replica.rotten[volume] and error is not None:
        world.report.endings["stopped: rotten replica"] += 1
        return
    is_short = world.truth.may_lack_base and not is_published  # it lost its end, and nobody sends that again
    if error is not None and on_path and not (is_short and isinstance(error, LogGapError)):
        raise Violation(f"{replica.name} stopped where it could go on: {error.message}")
    if error is None and not on_path:
        raise Violation(f"{replica.name} stands at event {sequence}, which isn't in the log, and says nothing")
    name = type(error).__name__
    world.report.endings["converged" if error is None else f"stopped: {name}"] += 1


def _is_edge(world: TwoHosts, volume: UUID, state: object) -> bool:
    """Whether the replica stands right where the log now begins."""
    first = world.truth.stream(volume).events[:1]
    return not first or first[0].header.previous == getattr(state, "digest", b"")
