"""Two copies of a pool's metadata behind one BlockDevice: written to both, read from the first, healed from the other.

Below pdata/store and pdata/transaction, which see one device. What differs from any mirror of blocks: each metadata
block has a checksum and its own number in it, so of two copies the good one is known; and all hangs on block 0, so the
order of its two writes is what a power cut may be met by. Which copies may be used at opening is pool/mirror_choice's;
`save` makes a MirrorState durable before it returns (pool/mirror_state).

What is on disk if the machine dies at each line of a commit (N the old state, N+1 the new one):

    line                                        first       second      state     the next opening has
    new blocks written to the first             N, some     N           -         N, both: what differs nobody reaches
    … and to the second                         N, some     N, some     -         N, both
    both flushed                                N, all      N, all      -         N, both
    block 0 of the first written                N or N+1    N, all      -         N, both; or N+1 of the first (M3)
    … and flushed                               N+1         N, all      -         N+1 of the first (M3)
    block 0 of the second written, flushed      N+1         N or N+1    -         N+1, as above, or both
    block 0 of the first is torn                -           N, all      -         N of the second (M3)

If a write or a flush of one copy fails:

    before the state is durable                 any part    N           -         as above: nothing was answered
    after that                                  any part    N, N+1      lost      the other copy; this one is M3's

While a copy is brought up to date (M3), its blocks first, then a flush, its block 0, and a flush:

    block 0 of the good one written once more   the same    as it was   -         as before; without it, the other one
    state durable                               good        as it was   lost      begins again
    blocks written, any of them                 good        unusable    lost      begins again
    block 0 written and flushed                 good        the same    lost      begins again, and finds no difference
    state durable                               good        the same    -         both

Invariants
  M1  Before a write or a flush is answered, each copy has it, or is lost, durably; both lost is an error.
  M2  No two copies of block 0 are on their way at once: the first is flushed before the second is written.
  M3  A copy that may lack something (lost, behind) is neither read nor written, but by `bring_up_to_date`.
  M4  A whole block that is bad in one copy (unreadable, wrong checksum, another's number) is taken from the other if it
      is good there, and written back; what is good in neither is returned as it is. Blocks in no use may hold anything.
  M5  Writing back goes on in writers' turns, looking again first: it never puts an older block over a newer one.
      Where neither it nor the loss can be written, the read stands: nothing that was answered hangs on it.
  M6  The state and the copies in use change in a writer's turn only, saving included: what is saved last is what is so.
  M7  A copy isn't called lost for being behind before the other one has taken a write: that one may be dying.

Failures: DeviceError, from the last copy that there is, or of `save`.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from replicator._buffer import Buffer
from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError, UsageError
from replicator.pdata.mirror_copying import (
    Progress,
    TargetError,
    bring_up_to_date,
    first_readable,
    heal_from,
    is_good,
    prove_writable,
    read_block,
    read_from_any,
    whole_blocks,
)
from replicator.units import METADATA_BLOCK_BYTES

_log = logging.getLogger(__name__)


class Side(StrEnum):
    """Which of the two copies."""

    FIRST = "first"
    SECOND = "second"

    @property
    def other(self) -> Side:
        """The other one."""
        return Side.SECOND if self is Side.FIRST else Side.FIRST


@dataclass(frozen=True, slots=True)
class MirrorState:
    """What must outlive the process: which copy is lost, since when and why; and how many blocks were healed ever.

    `dropping`: the lost copy is about to leave, and the pool to be one without a mirror.
    """

    lost: Side | None = None
    since_ns: int = 0
    why: str = ""
    healed_blocks: int = 0
    dropping: bool = False


Copies = Mapping[Side, BlockDevice]
Save = Callable[[MirrorState], None]


class MirroredDevice:
    """The copies of `copies` that aren't lost or `behind`, as one device named `name`.

    `look` (for readers beside a writer) is called before each read; it gives the copies to read from when they changed.
    """

    def __init__(
        self,
        name: str,
        copies: Copies,
        state: MirrorState,
        save: Save,
        *,
        behind: Side | None = None,
        why_behind: str = "",
        read_only: bool = False,
        look: Callable[[], Copies | None] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._name, self._read_only, self._clock_ns = name, read_only, clock_ns
        self._all = dict(copies)
        self._opened = list(copies.values())
        self._save, self._look = save, look
        self._turn = threading.RLock()
        self.read_marks: npt.NDArray[np.bool_] | None = None  # which blocks were read, for who wants to compare them
        self._why_behind = why_behind
        self._healed_saved = state.healed_blocks
        self.state = state
        self._used = {side: copies[side] for side in Side if side in copies and side not in (state.lost, behind)}
        assert self._used, "somebody must say which copy is good"

    @property
    def name(self) -> str:
        return self._name

    @property
    def copies(self) -> dict[Side, BlockDevice]:
        """The copies in use (M3)."""
        return dict(self._used)

    @property
    def unused(self) -> tuple[Side, str] | None:
        """The copy that isn't in use, and why."""
        for side in Side:
            if side not in self._used:
                return side, self.state.why if self.state.lost is side else self._why_behind or "it isn't there"
        return None

    @property
    def size_bytes(self) -> int:
        """As far as every copy in use reaches."""
        return min(each.size_bytes for each in self._used.values())

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def discard_zeroes(self) -> bool:
        return all(each.discard_zeroes for each in self._used.values())

    def fileno(self) -> int:
        return -1

    def refresh_size(self) -> int:
        """Ask for the lengths again: somebody may have made the files longer."""
        for each in self._used.values():
            if isinstance(each, FileDevice):
                each.refresh_size()
        return self.size_bytes

    # -- reading -----------------------------------------------------------------------------------------------

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._check_range("read", length_bytes, offset_bytes)
        target = bytearray(length_bytes)
        self.pread_into(target, offset_bytes)
        return bytes(target)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        if self.read_marks is not None:
            first, end = offset_bytes // METADATA_BLOCK_BYTES, offset_bytes + memoryview(target).nbytes
            self.read_marks[first : -(-end // METADATA_BLOCK_BYTES)] = True
        if self._look is not None:
            self._look_again(self._look)
        view = memoryview(target).cast("B")
        self._check_range("read", len(view), offset_bytes)
        sources = list(self._used.values())
        try:
            sources[0].pread_into(view, offset_bytes)
        except DeviceError as error:
            if len(sources) == 1:
                raise
            self._read_apart(view, offset_bytes, error)
            return
        if len(sources) > 1:
            for begin in whole_blocks(view, offset_bytes):
                part = view[begin : begin + METADATA_BLOCK_BYTES]
                if not is_good(part, (offset_bytes + begin) // METADATA_BLOCK_BYTES):
                    self._mend(part, (offset_bytes + begin) // METADATA_BLOCK_BYTES)

    def _look_again(self, look: Callable[[], Copies | None]) -> None:
        with self._turn:
            if (changed := look()) is not None:
                self._used = dict(changed)
                self._opened.extend(changed.values())

    def _read_apart(self, view: memoryview, offset_bytes: int, error: DeviceError) -> None:
        """What the first copy couldn't read in one piece: block by block, each from where it can be read."""
        whole = whole_blocks(view, offset_bytes)
        if len(whole) * METADATA_BLOCK_BYTES != len(view):
            read_from_any(self._used.values(), view, offset_bytes, error)
            return
        for begin in whole:
            part = view[begin : begin + METADATA_BLOCK_BYTES]
            self._mend(part, (offset_bytes + begin) // METADATA_BLOCK_BYTES)

    def _mend(self, part: memoryview, number: int) -> None:
        """Read the block again, from the copy in which it is good; and heal the one in which it isn't (M4, M5)."""
        with self._turn:
            found = {side: read_block(device, number) for side, device in self._used.items()}
            good = [side for side, it in found.items() if isinstance(it, bytes) and is_good(it, number)]
            if not good:
                part[:] = first_readable(found.values())
                return
            content, bad = found[good[0]], good[0].other
            assert isinstance(content, bytes)
            part[:] = content
            if not self._read_only and bad in found and bad not in good:
                self._heal(bad, content, number, found[bad])

    def _heal(self, side: Side, content: bytes, number: int, was: bytes | DeviceError) -> None:
        name = self._used[side].name
        why = was.message if isinstance(was, DeviceError) else "its checksum or its own number is wrong"
        try:
            self._used[side].pwrite(content, number * METADATA_BLOCK_BYTES)
        except DeviceError as error:
            self._lose_if_that_can_be_said(side, error)
            return
        self.state = replace(self.state, healed_blocks=self.state.healed_blocks + 1)
        _log.warning("%s: metadata block %d was bad (%s), and is healed from the other copy", name, number, why)

    def _lose_if_that_can_be_said(self, side: Side, error: DeviceError) -> None:
        """A block that can't be healed is as bad as before (M4): it's no reason for the read to fail."""
        try:
            self._lose(side, error)
        except DeviceError as unsaid:
            _log.error("%s can't be healed, and not be called lost: %s", self._used[side].name, unsaid.message)

    # -- writing -----------------------------------------------------------------------------------------------

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self.pwritev([data], offset_bytes)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self._check_range("write", sum(memoryview(part).nbytes for part in parts), offset_bytes)

        def act(device: BlockDevice) -> None:
            device.pwritev(parts, offset_bytes)
            if offset_bytes < METADATA_BLOCK_BYTES:
                device.flush()  # M2

        self._on_each(act)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._check_range("discard", length_bytes, offset_bytes)
        self._on_each(lambda device: device.discard(offset_bytes, length_bytes))

    def flush(self) -> None:
        self._on_each(lambda device: device.flush())
        self._keep_count()

    def grow(self, size_bytes: int) -> None:
        if self._read_only:
            raise UsageError(f"{self._name} can't be grown: it is open for reading only")
        for each in self._used.values():
            each.grow(size_bytes)

    def close(self) -> None:
        """Close every copy; nothing is flushed."""
        self._keep_count()
        for each in self._opened:
            each.close()

    def __enter__(self) -> MirroredDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_range(self, what: str, length_bytes: int, offset_bytes: int) -> None:
        """A caller's mistake is told before it looks like the loss of a copy."""
        if what != "read" and self._read_only:
            raise DeviceError(f"{what} of {self._name}", offset_bytes, errno.EROFS, "it is open for reading only")
        end = offset_bytes + length_bytes
        if offset_bytes < 0 or length_bytes < 0 or (end > self.size_bytes and end > self.refresh_size()):
            reason = f"{length_bytes} bytes don't lie within its {self.size_bytes}"
            raise DeviceError(f"{what} of {self._name}", offset_bytes, errno.EINVAL, reason)

    def _on_each(self, act: Callable[[BlockDevice], None]) -> None:
        with self._turn:
            for side, device in list(self._used.items()):
                try:
                    act(device)
                except DeviceError as error:
                    self._lose(side, error)

    def _lose(self, side: Side, error: DeviceError) -> None:
        """Go on without a copy (M1); the error itself where it is the last one, or where nobody may write."""
        if self._read_only or side.other not in self._used:
            raise error
        name = self._used[side].name
        self.record(replace(self.state, lost=side, since_ns=self._clock_ns(), why=error.message))
        self._used = {side.other: self._used[side.other]}
        _log.error("%s is lost (%s): the pool goes on with the %s copy alone", name, error.message, side.other)

    def record(self, state: MirrorState) -> None:
        """Make a state durable: also for who changes the copies from outside."""
        with self._turn:  # M6
            self._save(state)
            self.state = state
            self._healed_saved = state.healed_blocks

    def _keep_count(self) -> None:
        """How many blocks were healed is for people: where it can't be kept, nothing else is lost."""
        with self._turn:
            if self._read_only or self.state.healed_blocks == self._healed_saved:
                return
            try:
                self.record(self.state)
            except DeviceError as error:
                _log.warning("%s: how many blocks were healed can't be kept: %s", self._name, error.message)
                self._healed_saved = self.state.healed_blocks

    def doubt(self, side: Side, why: str) -> None:
        """From now on a copy isn't used, until `settle` has brought it up to date."""
        with self._turn:
            assert side.other in self._used, "the other one must be good"
            self._used = {side.other: self._used[side.other]}
            self._why_behind = why

    # -- a copy that was lost --------------------------------------------------------------------------------------

    def settle(
        self,
        may_overwrite: Callable[[BlockDevice], bool],
        progress: Progress = lambda _: None,
        telling: Callable[[str], None] = lambda _: None,
    ) -> None:
        """To be called once what was opened is known to be right, and before the first write.

        A copy that isn't in use is lost from here on, durably (M1, M7); if it is there and may be overwritten, it is
        brought up to date, and both are in use.
        """
        with self._turn:
            for side in Side:
                if side in self._used:
                    continue
                if self.state.lost is not side:
                    self._heal_from_behind(side)
                    prove_writable(self._used[side.other])
                    why = self._why_behind or "it isn't there"
                    self.record(replace(self.state, lost=side, since_ns=self._clock_ns(), why=why))
                    _log.warning("%s: the %s copy isn't used: %s", self._name, side, why)
                device = self._all.get(side)
                if device is not None and may_overwrite(device):
                    telling(f"bringing {device.name} up to date")
                    self._bring_back(side, device, progress)

    def release_unused(self) -> None:
        """Close the copy that isn't in use, so that its device can be taken anew."""
        for side in self._all.keys() - self._used.keys():
            self._all.pop(side).close()

    def _heal_from_behind(self, side: Side) -> None:
        """A copy that is only a superblock behind may have what is bad in the one that is used (M4)."""
        if (device := self._all.get(side)) is not None:
            healed = heal_from(self._used[side.other], device)
            self.state = replace(self.state, healed_blocks=self.state.healed_blocks + healed)

    def _bring_back(self, side: Side, device: BlockDevice, progress: Progress) -> None:
        source = self._used[side.other]
        try:
            bring_up_to_date(source, device, progress)
        except TargetError as failed:
            self.record(replace(self.state, why=f"it can't be brought up to date: {failed.error.message}"))
            _log.warning("%s can't be brought up to date: %s", device.name, failed.error.message)
            return
        self.record(replace(self.state, lost=None, since_ns=0, why=""))
        self._used = {each: self._all[each] for each in Side}
        _log.warning("%s is up to date again", device.name)
