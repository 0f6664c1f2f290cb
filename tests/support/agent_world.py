"""A source host in one process: a pool on files, volumes that a test writes, a log, and publishers over them.

`Replica` is the plainest applier there is: the stream's events folded into bytes, every hash and the chain checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from agent.context import Context, open_files, open_origin
from agent.delta import Delta, State
from agent.ratelimit import TokenBucket
from replicator.events.bodies import TransactionAborted, TransactionBegan, TransactionCommitted
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.frames import Decompressor, chunk_hash
from replicator.events.pages import apply_pages
from replicator.events.state import StreamState
from replicator.log.directory import DirectoryStore
from replicator.log.interface import Log
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Origin, OriginKind, Purpose, Volume
from replicator.pool.changes import Put
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.device import ThinDevice
from replicator.units import CHUNK_BYTES, MIB
from tests.support.faulty_files import UnsyncedFiles
from tests.support.manual_clock import ManualClock

VOLUME = UUID("6f1c0000-0000-4000-8000-00000000cafe")


class CountedUuids:
    """UUIDs that a test knows beforehand."""

    def __init__(self, begin: int = 1 << 64) -> None:
        self._next = begin

    def __call__(self) -> UUID:
        self._next += 1
        return UUID(int=self._next)


class SourceHost:
    """A pool with volumes; `write` and `discard` are what an NBD client would do."""

    def __init__(self, folder: Path, *, size_bytes: int = 32 * MIB, block_bytes: int = CHUNK_BYTES) -> None:
        self.path = folder / "pool"
        create_pool(self.path, PoolPlan(size_bytes=size_bytes, block_bytes=block_bytes, metadata_bytes=2 * MIB))
        self.pool: OwnedPool = own_pool(self.path)

    @classmethod
    def at(cls, path: Path) -> SourceHost:
        """The host of a pool that is there already."""
        host = cls.__new__(cls)
        host.path, host.pool = path, own_pool(path)
        return host

    def create(
        self, name: str, size_bytes: int, *, uuid: UUID = VOLUME, dev_id: int = 1, origin: Path | None = None
    ) -> UUID:
        """A new volume."""
        row = Origin(OriginKind.FILE, str(origin), origin.stat().st_size) if origin else None
        volume = Volume(uuid, name, dev_id, size_bytes, 1, row)
        self.pool.switch(Switch(changes=(Put(volume),), create=(dev_id,)))
        return uuid

    def follow(self, clock: ManualClock) -> None:
        """From now on cuts are stamped by `clock`."""
        pool = self.pool

        def stamped(_: int) -> int:
            pool._last_cut_ns = max(clock.now_ns(), pool._last_cut_ns + 1)
            return pool._last_cut_ns

        pool._cut_time = stamped  # type: ignore[assignment, method-assign]  # the engine's own clock is the machine's

    def device(self, uuid: UUID = VOLUME) -> ThinDevice:
        """The live volume as a disk."""
        volume = self.pool.view().volume(uuid)
        origin = None
        if volume.origin is not None:
            from replicator.blockdev.file import FileDevice

            origin = FileDevice(Path(volume.origin.location), read_only=True)
        return self.pool.engine.open_device(volume.dev_id, volume.size_bytes, origin=origin, read_only=False)

    def write(self, offset_bytes: int, data: bytes, uuid: UUID = VOLUME) -> None:
        """A client's write."""
        with self.pool.engine.gate.writing():
            self.device(uuid).pwrite(data, offset_bytes)

    def discard(self, offset_bytes: int, length_bytes: int, uuid: UUID = VOLUME) -> None:
        """A client's trim."""
        with self.pool.engine.gate.writing():
            self.device(uuid).discard(offset_bytes, length_bytes)

    def content(self, uuid: UUID = VOLUME) -> bytes:
        """The whole volume as it reads now."""
        device = self.device(uuid)
        return bytes(device.pread(self.pool.view().volume(uuid).size_bytes, 0))

    def snapshot(self, uuid: UUID = VOLUME, *, number: int) -> int:
        """A user's snapshot."""
        return self.pool.cut(CutRequest(UUID(int=number), (uuid,), Purpose.USER)).dev_ids[0]

    @contextmanager
    def delta(self, base: int | None, target: int, origin: Path | None = None) -> Iterator[Delta]:
        """What differs between two snapshots."""
        view, wanted = self.pool.view(), [each for each in (base, target) if each is not None]
        with self.pool.lease(wanted) as lease, open_files(self.pool) as files:
            states = {each: State(lease.devices[each].root, view.snapshot(each).size_bytes) for each in wanted}
            opened = None
            if origin is not None:
                from replicator.blockdev.file import FileDevice

                opened = FileDevice(origin, read_only=True)
            yield Delta(
                files,
                None if base is None else states[base],
                states[target],
                origin=opened,
                stands=lambda: lease.stands,
            )

    def reopen_closed(self) -> None:
        """Open the pool again."""
        self.pool = own_pool(self.path)

    def close(self) -> None:
        """Let go."""
        self.pool.close()


def unsynced_log(folder: Path) -> ObjectLog:
    """A directory log that leaves syncing out, for speed."""
    folder.mkdir(exist_ok=True)
    return ObjectLog(DirectoryStore(folder, UnsyncedFiles()), create=True)


def context_of(host: SourceHost, log: Log, clock: ManualClock, uuids: CountedUuids | None = None) -> Context:
    """A publisher's world over them."""
    return Context(
        pool=lambda: host.pool,
        log=log,
        files=open_files,
        origin=open_origin,
        clock=clock,
        new_uuid=uuids or CountedUuids(),
        host="alpha",
        bucket=TokenBucket(None, clock.monotonic),
    )


@dataclass(slots=True)
class Replica:
    """A volume as its stream's events make it; `points` has the content at each N."""

    checker: ChainChecker
    content: bytearray = field(default_factory=bytearray)
    points: dict[int, bytes] = field(default_factory=dict)
    instants: dict[int, int] = field(default_factory=dict)
    commits: list[TransactionCommitted] = field(default_factory=list)
    staged: bytearray | None = None

    @classmethod
    def of(cls, log: Log, volume: UUID = VOLUME, timeline: int = 1) -> Replica:
        """The fold of everything that the log has."""
        replica = cls(ChainChecker(StreamState.start(volume, timeline)))
        for event in log.reader(volume, timeline).read(1):
            assert replica.checker.accept(event) is Verdict.APPLY
            replica.apply(event)
        return replica

    def apply(self, event: Event) -> None:
        """One event of the stream."""
        body = event.body
        if isinstance(body, TransactionBegan):
            self.staged = resized(self.content, body.size_bytes)
            self.instants[body.number] = body.timestamp_ns
        elif isinstance(body, TransactionAborted):
            self.staged = None
        elif isinstance(body, TransactionCommitted):
            assert self.staged is not None
            self.content, self.staged = self.staged, None
            self.points[body.number] = bytes(self.content)
            self.commits.append(body)
        elif isinstance(body, ChunksDiscarded | ChunksZeroed | ChunksWritten):
            assert self.staged is not None
            apply_body(self.staged, body)


def resized(content: bytes | bytearray, size_bytes: int) -> bytearray:
    """Grown with zeros, or cut."""
    return bytearray(content[:size_bytes]).ljust(size_bytes, b"\0")


def apply_body(content: bytearray, body: ChunksDiscarded | ChunksZeroed | ChunksWritten) -> None:
    """Chunks onto `content`, each hash checked."""
    size = len(content)
    if not isinstance(body, ChunksWritten):
        for begin, end in body.iter_runs():
            first, last = begin * CHUNK_BYTES, min(size, end * CHUNK_BYTES)
            content[first:last] = bytes(last - first)
        return
    for applied in Decompressor().iter_chunks(body):
        begin = applied.chunk * CHUNK_BYTES
        chunk = bytearray(content[begin : begin + CHUNK_BYTES]).ljust(CHUNK_BYTES, b"\0")
        apply_pages(chunk, applied.mask, applied.pages)
        assert chunk_hash(chunk) == applied.digest, f"chunk {applied.chunk}"
        length = min(CHUNK_BYTES, size - begin)
        assert not any(chunk[length:]), "bytes behind the volume's end"
        content[begin : begin + length] = chunk[:length]
