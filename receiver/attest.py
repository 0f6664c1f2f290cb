"""Compares what the source attested of a point (VolumeAttested) with what the replica reads: drift is found, and loud.

Beside the followers, in a thread of its own: a whole volume is read. The point is leased at the event, while the head
still equals it (the next transaction then goes around the head, receiver/apply); one that isn't here is passed over.

    event's span      what is compared
    span_chunks       xxh3-128 over the xxh3-128 of each of its chunks; unmapped chunks are zeros, and not read

    dies …                        on disk                     what follows
    while it compares             nothing                     the next attestation compares
    after it                      a `verified` or `drift` row status tells

Invariants
  T1  What was read counts only while the lease stood to the end.
  T2  Of each volume one attestation waits at most: a newer one takes its place, and its lease is released.
  T3  A drift stays until a later attestation finds the volume equal.
  T4  What is compared is the attested point: looked up again under its lease, since dev_ids are given again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

import xxhash

from receiver.access import Access
from receiver.disks import Disks
from receiver.draft import ZERO_HASH
from receiver.errors import DriftError
from receiver.remember import Drift, drift_changes, verified_row
from replicator.blockdev.interface import BlockDevice
from replicator.errors import NotFoundError, ReplicatorError
from replicator.events.bodies import VolumeAttested
from replicator.events.digests import digest128
from replicator.events.values import chunk_count_of
from replicator.pool.catalogue_schema import Purpose, Role
from replicator.pool.interface import Lease, Switch
from replicator.pool.view import CatalogueView
from replicator.thin.mapping import data_blocks
from replicator.thin.view import PoolView
from replicator.units import CHUNK_BYTES, MIB

_READ_BYTES = MIB
_ZEROS_AT_ONCE = 1 << 16  # hashes of zero chunks fed at once: a hole of a terabyte takes 256 calls


@dataclass(frozen=True, slots=True)
class Attested:
    """What waits to be compared: the attestation, and the lease on the device that equals its point."""

    access: Access
    volume: UUID
    name: str
    body: VolumeAttested
    dev_id: int
    lease: Lease
    held: ExitStack


class Attester:
    """Compares attestations one behind the other; `take` from any thread, `compare_waiting` from one."""

    def __init__(self, clock_ns: Callable[[], int], report: Callable[[UUID, ReplicatorError], None]) -> None:
        self._clock_ns, self._report = clock_ns, report
        self._turn = threading.Condition()
        self._waiting: dict[UUID, Attested] = {}
        self._closed = False

    def take(self, access: Access, volume: UUID, name: str, body: VolumeAttested) -> bool:
        """Lease the attested point and let it wait; False where it isn't here (any more)."""
        dev_id = device_of(access.pool.view(), volume, body)
        if dev_id is None:
            return False
        held = ExitStack()
        try:
            lease = held.enter_context(access.pool.lease([dev_id]))
        except NotFoundError:
            return False
        if not _is_it(access.pool.view(), volume, body, dev_id):
            held.close()
            return False
        with self._turn:
            before = self._waiting.pop(volume, None)
            self._waiting[volume] = Attested(access, volume, name, body, dev_id, lease, held)
            self._turn.notify()
        if before is not None:
            before.held.close()
        return True

    def run(self) -> None:
        """Compare what comes until `close`."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
            self.compare_waiting()

    def compare_waiting(self) -> None:
        """Compare all that waits; what is wrong is told, and remembered in the pool."""
        while (job := self._next()) is not None:
            with job.held:
                try:
                    self._compare(job)
                except ReplicatorError as error:
                    self._report(job.volume, error)

    def _next(self) -> Attested | None:
        with self._turn:
            return None if self._closed or not self._waiting else self._waiting.pop(next(iter(self._waiting)))

    def _compare(self, job: Attested) -> None:
        pool, body = job.access.pool, job.body
        spans = differing_spans(job.access.disks, pool.block_bytes, job.lease, body, lambda: self._closed)
        if spans is None:
            return
        now_ns, number = self._clock_ns(), body.point.number
        drift = Drift(body.point.timeline, number, body.span_chunks, len(spans), tuple(spans[:16]), now_ns)
        changes = drift_changes(pool.view(), job.volume, drift if spans else None)
        if not spans:
            changes = (*changes, verified_row(job.volume, number, now_ns))
        pool.switch(Switch(changes=changes))
        if spans:
            raise DriftError(job.name, number, body.span_chunks, spans, len(spans))

    def close(self) -> None:
        """Compare no more; what waited is let go."""
        with self._turn:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
            self._turn.notify_all()
        for job in waiting:
            job.held.close()


def device_of(view: CatalogueView, volume: UUID, body: VolumeAttested) -> int | None:
    """The thin device that equals the attested point: the head, or a snapshot."""
    wanted = (body.point.timeline, body.point.number, body.point.digest)
    position = view.position(volume, Role.APPLIED)
    if position is not None and (position.timeline, position.number, position.digest) == wanted:
        return view.volume(volume).dev_id
    for each in view.snapshots_of(volume, Purpose.POINT):
        if (each.timeline, each.number, each.digest) == wanted:
            return each.dev_id
    return None


def _is_it(view: CatalogueView, volume: UUID, body: VolumeAttested, dev_id: int) -> bool:
    """Whether the device is the attested point (T4): still, or hidden meanwhile, which its lease outlasts."""
    wanted = (dev_id, body.point.timeline, body.point.number, body.point.digest)
    points = view.snapshots_of(volume, Purpose.POINT, hidden=True)
    stands = any((each.dev_id, each.timeline, each.number, each.digest) == wanted for each in points)
    return stands or device_of(view, volume, body) == dev_id


def differing_spans(
    disks: Disks, block_bytes: int, lease: Lease, body: VolumeAttested, stopping: Callable[[], bool]
) -> list[int] | None:
    """The spans that read otherwise than was attested; None when the lease fell meanwhile (T1), or on a stop."""
    (facts,) = lease.devices.values()
    spans = _Spans(body)
    per_block = block_bytes // CHUNK_BYTES
    for block, place in _mapped(PoolView.live(disks.metadata), facts.root):
        if stopping():
            return None
        spans.zeros(block * per_block)
        for digest in _digests(disks.data, place * block_bytes, block_bytes):
            spans.add(digest)
    spans.zeros(chunk_count_of(body.size_bytes))
    return spans.differing if lease.stands else None


def _mapped(view: PoolView, root: int) -> Iterator[tuple[int, int]]:
    """(block, data block) of what is mapped, ascending."""
    for keys, values in view.mappings(root):
        yield from zip(keys.tolist(), data_blocks(values).tolist(), strict=True)


def _digests(data: BlockDevice, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
    for at in range(offset_bytes, offset_bytes + length_bytes, _READ_BYTES):
        piece = memoryview(data.pread(min(_READ_BYTES, offset_bytes + length_bytes - at), at))
        for begin in range(0, len(piece), CHUNK_BYTES):
            yield digest128(piece[begin : begin + CHUNK_BYTES])


class _Spans:
    """The digests of spans, fed chunk by chunk in order; chunks beyond the volume's end are passed over."""

    def __init__(self, body: VolumeAttested) -> None:
        self._body = body
        self._end = chunk_count_of(body.size_bytes)
        self._chunk = 0
        self._hash = xxhash.xxh3_128()
        self.differing: list[int] = []

    def add(self, digest: bytes) -> None:
        """One chunk's hash."""
        if self._chunk < self._end:
            self._feed(digest, 1)

    def zeros(self, until: int) -> None:
        """Chunks of zeros up to `until`."""
        while self._chunk < min(until, self._end):
            in_span = self._body.span_chunks - self._chunk % self._body.span_chunks
            count = min(until, self._end, self._chunk + in_span, self._chunk + _ZEROS_AT_ONCE) - self._chunk
            self._feed(ZERO_HASH * count, count)

    def _feed(self, hashes: bytes, count: int) -> None:
        self._hash.update(hashes)
        self._chunk += count
        if self._chunk % self._body.span_chunks == 0 or self._chunk == self._end:
            span = (self._chunk - 1) // self._body.span_chunks
            if self._hash.digest() != self._body.hashes[16 * span : 16 * span + 16]:
                self.differing.append(span)
            self._hash = xxhash.xxh3_128()
