"""Workloads on a tiny pool: words of letters, each letter one operation of a client, the agent, the receiver or a user.

    o s w n x   writes to a: its own block, part of a shared one, a whole shared one, an unmapped one, across two
    q b         a write to a's own last block; a write to b, which is unmapped there
    d z         a trim of two blocks of a, zeroes over one and a half
    f m         a flush; a flush while which both volumes are written
    c g         a snapshot of a; a cut of a and b as a group, while which both are written
    k D E       a clone of a1; a1 is deleted; the same while both volumes are written
    V R         c is deleted with its snapshot; c is rolled back to c1
    A           a transaction is applied to c out of place, its position in the same switch
    S G         a becomes shorter; longer
    P M h       the pool's data grows; its metadata; the metadata snapshot is reserved, or released
    e r         nothing is written: the page tables are forgotten; all metadata below the highest block is in use (but
                for LEFT_BLOCKS in all), and the next to be given is looked for from the start on

An operation that the pool is in no state for raises NotApplicable: the workload equals a shorter one. One that finds
no room raises NoSpaceError, which a workload must not meet unless it is about that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from uuid import UUID

import numpy as np

from replicator.errors import ConflictError, NoSpaceError, NotFoundError, UsageError
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Snapshot, Volume
from replicator.pool.changes import End
from replicator.pool.interface import CutRequest, Switch
from replicator.thin.device import ThinDevice
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.crash_disk import DATA, METADATA
from tests.support.crash_knowledge import Note, Switching, rows_of, sizes_of
from tests.support.crash_pool import A1, A_BYTES, BLOCK, C1, A, B, Base, CrashPool, apply_blocks

SHORTER_BYTES = 2 * BLOCK + 1536
LONGER_BYTES = 6 * BLOCK + 512
LEFT_BLOCKS = 40  # of metadata: as many as a write beside a commit needs (tests.support.crash_pool.make_small)


class NotApplicableError(Exception):
    """The pool is in no state for this operation."""


class Player:
    """Plays operations on an open pool, telling the journal what is known after each step."""

    def __init__(self, crash: CrashPool, base: Base, seed: int = 0, operations: Operations | None = None) -> None:
        self.crash, self.pool, self.base = crash, crash.pool, base
        self.operations = operations or OPERATIONS
        self.chance = random.Random(seed)
        self.versions: dict[int, tuple[bytes, ...]] = {dev: (content,) for dev, content in base.contents.items()}
        self.position = base.position
        self._view = self.pool.view()
        self._switching: Switching | None = None
        self.met_room = [0, 0]  # how often a write beside a commit was left out for want of room, and was made
        self.knows()

    def knows(self, under_way: dict[int, tuple[bytes, ...]] | None = None, switching: Switching | None = None) -> None:
        """Tell the journal what is known now."""
        if switching is None:
            self._view = self.pool.view()
        self._switching = switching
        self.crash.journal.mark(Note(self._view.at_id, self._view, dict(self.versions), under_way or {}, switching))

    def play(self, word: str) -> None:
        """One letter after the other."""
        for letter in word:
            self.operations[letter](self)

    # -- contents ----------------------------------------------------------------------------------------------

    def device(self, dev_id: int) -> ThinDevice:
        """A live volume's device."""
        return self.crash.engine.devices[dev_id]

    def now(self, dev_id: int) -> bytes:
        """What a device reads as now."""
        return self.versions[dev_id][-1]

    def put(self, dev_id: int, offset_bytes: int, length_bytes: int) -> None:
        """A write of bytes that were never written before."""
        end = min(offset_bytes + length_bytes, len(self.now(dev_id)))
        if offset_bytes >= end:
            raise NotApplicableError
        data = self.chance.randbytes(end - offset_bytes)
        self._change(dev_id, data, offset_bytes, lambda device: device.pwrite(data, offset_bytes))

    def zero(self, dev_id: int, offset_bytes: int, length_bytes: int, *, trim: bool) -> None:
        """A trim of whole blocks, or a write of zeroes."""
        end = min(offset_bytes + length_bytes, len(self.now(dev_id)))
        if offset_bytes >= end:
            raise NotApplicableError
        zeros = bytes(end - offset_bytes)

        def send(device: ThinDevice) -> None:
            (device.discard if trim else device.write_zeroes)(offset_bytes, end - offset_bytes)

        self._change(dev_id, zeros, offset_bytes, send)

    def _change(self, dev_id: int, data: bytes, offset_bytes: int, send: Callable[[ThinDevice], None]) -> None:
        content = bytearray(self.now(dev_id))
        content[offset_bytes : offset_bytes + len(data)] = data
        after, switching = bytes(content), self._switching
        self.knows({dev_id: (after,)}, switching)
        with self.crash.engine.gate.writing():
            send(self.device(dev_id))
        self.versions[dev_id] = (*self.versions[dev_id], after)
        self.knows({}, switching)

    def evict(self) -> None:
        """The page tables are forgotten."""
        for device in self.crash.engine.devices.values():
            device.table.clear()

    # -- commits -----------------------------------------------------------------------------------------------

    def marks(self) -> dict[int, int]:
        """How many versions of each device there are."""
        return {dev_id: len(contents) for dev_id, contents in self.versions.items()}

    def flush(self) -> None:
        """A flush, answered."""
        marks = self.marks()
        self.pool.flush()
        self.versions = {dev_id: contents[marks[dev_id] - 1 :] for dev_id, contents in self.versions.items()}
        self.knows()

    def meanwhile(self, act: Callable[[], None]) -> None:
        """`act` while both volumes are written: before the data is flushed, and between the nodes and block 0."""
        waiting = [DATA, METADATA]

        def write(disk: str) -> None:
            if waiting and disk == waiting[0]:
                waiting.pop(0)
                if disk == DATA:
                    self.evict()
                for dev_id, offset in ((A, 4096), (A, BLOCK + 4096), (B, BLOCK + 512)):
                    if self.has_room():
                        self.put(dev_id, offset, 1024)

        self.crash.journal.at_flush = write
        try:
            act()
        finally:
            self.crash.journal.at_flush = lambda _: None

    def has_room(self) -> bool:
        """Whether a write can be made now without waiting for the commit under way, which would wait for it."""
        engine = self.crash.engine
        found = engine.admission.write_limit > engine.dirty.weight and engine.space.free_count > 0
        self.met_room[found] += 1
        return found

    def switch(
        self,
        act: Callable[[], object],
        exact: dict[int, bytes] | None = None,
        fresh: bytes = b"",
        under_way: dict[int, tuple[bytes, ...]] | None = None,
    ) -> None:
        """An operation of one switch or more: `exact` contents that it leaves, `fresh` that of a new volume."""
        before = self.pool.view()
        contents = {row.uuid: self.now(row.dev_id) for row in before.volumes}
        switching = Switching(self.marks())
        self.knows(under_way, switching)
        try:
            act()
        except (ConflictError, NoSpaceError, NotFoundError, UsageError) as error:
            self.crash.journal.at_flush = lambda _: None
            self.pool.flush()  # a refused change is told before its round is over: what is written meanwhile ends here
            if isinstance(error, NoSpaceError):
                raise
            raise NotApplicableError from error
        views = self.crash.catalogue.views
        switching.views.update({at: views[at] for at in range(before.at_id + 1, max(views) + 1)})
        switching.exact.update(exact or {})
        for view in switching.views.values():
            for row in rows_of(view):
                if row.dev_id not in self.versions and row.dev_id not in switching.exact:
                    made = contents[row.volume] if isinstance(row, Snapshot) else fresh
                    switching.exact[row.dev_id] = made
        self._settle(switching)

    def _settle(self, switching: Switching) -> None:
        view = self.pool.view()
        there = set(sizes_of(view))
        kept = {dev: each[switching.marks[dev] - 1 :] for dev, each in self.versions.items() if dev in there}
        kept.update({dev: (content,) for dev, content in switching.exact.items() if dev in there})
        self.versions = kept
        self.knows()

    def row(self, name: str) -> Volume:
        """The volume of that name."""
        found = [each for each in self.pool.view().volumes if each.name == name]
        if not found:
            raise NotApplicableError
        return found[0]

    def need(self, dev_id: int) -> None:
        """NotApplicable unless the device is there."""
        if dev_id not in self.versions:
            raise NotApplicableError

    def new_name(self) -> str:
        """One that nothing has."""
        return f"n{len(self.crash.catalogue.views)}"


def _cut(player: Player) -> None:
    player.switch(lambda: volumes.create_snapshot(player.pool, "a", player.new_name()))


def _group_cut(player: Player) -> None:
    request = CutRequest(UUID(int=player.chance.getrandbits(120)), (player.row("a").uuid, player.row("b").uuid))
    player.meanwhile(lambda: player.switch(lambda: player.pool.cut(request)))


def _clone(player: Player) -> None:
    player.need(A1)
    player.switch(lambda: volumes.clone(player.pool, A1, player.new_name()), fresh=player.now(A1))


def _delete_snapshot(player: Player) -> None:
    player.need(A1)
    player.switch(lambda: volumes.delete_snapshot(player.pool, A1))


def _delete_meanwhile(player: Player) -> None:
    player.need(A1)
    gone = Switch(delete=(A1,), changes=(End(Snapshot, (A1,)),))
    player.meanwhile(lambda: player.switch(lambda: player.pool.switch(gone)))


def _go_round(player: Player) -> None:
    counts = player.crash.engine.metadata.transaction.metadata.counts
    highest = np.flatnonzero(counts.get(np.arange(counts.nr_blocks, dtype=np.uint64)))[-1]
    counts._cursor = 1
    taken = counts.take(max(0, counts.free_count - LEFT_BLOCKS))
    counts.put_back(taken[taken > highest])
    counts._cursor = 1


def _delete_volume(player: Player) -> None:
    row = player.row("c")
    player.switch(lambda: volumes.delete_volume(player.pool, row.uuid, with_snapshots=True))


def _roll_back(player: Player) -> None:
    player.need(C1)
    player.row("c")
    player.switch(lambda: volumes.rollback(player.pool, "c", "c1"), fresh=player.now(C1))


def _apply(player: Player) -> None:
    row = player.row("c")
    content = bytearray(player.now(row.dev_id))
    blocks = {block: player.chance.randbytes(BLOCK) for block in (0, 2)}
    for block, data in blocks.items():
        content[block * BLOCK : (block + 1) * BLOCK] = data
    content[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    exact = {row.dev_id: bytes(content)}
    player.switch(lambda: apply_blocks(player.crash, row.dev_id, blocks, player.position, (1, 2)), exact)


def _resize(size_bytes: int) -> Callable[[Player], None]:
    def resize(player: Player) -> None:
        row, content = player.row("a"), player.now(A)
        if len(content) == size_bytes:
            raise NotApplicableError
        after = content[:size_bytes].ljust(size_bytes, b"\0")
        block_end = -(-size_bytes // BLOCK) * BLOCK
        zeroed = content[:size_bytes].ljust(min(block_end, len(content)), b"\0") + content[block_end:]
        shrinks = size_bytes < len(content)
        act = lambda: volumes.resize(player.pool, row.uuid, size_bytes)  # noqa: E731 - a name for one line
        player.switch(act, {A: after}, under_way={A: (zeroed,)} if shrinks else None)

    return resize


def _grow_data(player: Player) -> None:
    blocks = player.crash.data.size_bytes // BLOCK + 2
    player.crash.data.grow(blocks * BLOCK)
    player.switch(lambda: player.pool.switch(Switch(grow_data_blocks=blocks)))


def _grow_metadata(player: Player) -> None:
    blocks = player.crash.metadata.size_bytes // METADATA_BLOCK_BYTES + 16
    player.crash.metadata.grow(blocks * METADATA_BLOCK_BYTES)
    player.switch(lambda: player.pool.switch(Switch(grow_metadata_blocks=blocks)))


def _held(player: Player) -> None:
    held = not player.pool.status().held_root
    player.switch(lambda: player.pool.set_metadata_snapshot(held))


Operations = Mapping[str, Callable[[Player], None]]

OPERATIONS: Operations = {
    "o": lambda player: player.put(A, 4096, 4096),
    "s": lambda player: player.put(A, BLOCK + 8192, 4096),
    "w": lambda player: player.put(A, 2 * BLOCK, BLOCK),
    "n": lambda player: player.put(A, 3 * BLOCK, 4096),
    "x": lambda player: player.put(A, 2 * BLOCK - 1024, 2048),
    "q": lambda player: player.put(A, A_BYTES - 512, 512),
    "b": lambda player: player.put(B, BLOCK, 4096),
    "d": lambda player: player.zero(A, 0, 2 * BLOCK, trim=True),
    "z": lambda player: player.zero(A, 512, BLOCK + BLOCK // 2, trim=False),
    "f": lambda player: player.flush(),
    "m": lambda player: player.meanwhile(player.flush),
    "c": _cut,
    "g": _group_cut,
    "k": _clone,
    "D": _delete_snapshot,
    "E": _delete_meanwhile,
    "V": _delete_volume,
    "R": _roll_back,
    "A": _apply,
    "S": _resize(SHORTER_BYTES),
    "G": _resize(LONGER_BYTES),
    "P": _grow_data,
    "M": _grow_metadata,
    "h": _held,
    "e": lambda player: player.evict(),
    "r": _go_round,
}
