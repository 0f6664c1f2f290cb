"""Opening a pool's metadata: the one file or device of most pools, or the two copies of a mirrored one.

Every opener comes through here. A pool has a mirror where its directory has `metadata.mirror` or `mirror.json`
(pool/mirror_state); without, this is FileDevice(path / "metadata") and nothing else.

    opened by                                copies in use                                     written
    its owner                                mirror_choice's, but never a lost one; both       the other one, by
                                             after `settle_metadata`                           `settle_metadata`
    a reader, nobody writing (`settled`)     mirror_choice's, but never a lost one             nothing
    a reader beside a writer                 those that aren't lost and have a superblock;     nothing
                                             looked at again when mirror.json changes
    repair                                   as a reader; else what pool/repair_source says    nothing

Invariants
  D1  A copy that mirror.json calls lost isn't used, but to be brought up to date (pdata/mirror, M3).
  D2  What is brought up to date is a device that names our pool in its block 0, or a file that names no other one: a
      device's name may have come to be another device's.
  D3  A reader beside a writer looks at mirror.json before each read: the writer's state is durable before it answers,
      so that no block is read from a copy that was lost before the reader got the root that leads to it. Where it
      can't look, or has no other copy, the read fails.
  D4  Whoever opens for writing, `exclusive`, holds each copy that it opens (P9 of pool/locks), also one that isn't
      used: bringing it up to date overwrites it. A lost copy that can't be had, for whatever reason, stays lost.

Failures: those of FileDevice, DamageError (two copies that contradict each other, or only a lost one), FormatError.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from replicator.blockdev.file import FileDevice, sync_folder
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError, DeviceError, FormatError, NotFoundError, ReplicatorError, UsageError
from replicator.pdata.mirror import Copies, MirroredDevice, MirrorState, Side
from replicator.pdata.mirror_copying import Progress
from replicator.pool.locks import hold_files
from replicator.pool.mirror_choice import Choice, Seen, choose
from replicator.pool.mirror_state import STATE, load_state, remove_state, save_state, stamp_of
from replicator.thin.dirty import boot_id, superblock_sum
from replicator.thin.superblock import Superblock, read_superblock
from replicator.units import METADATA_BLOCK_BYTES

METADATA, MIRROR = "metadata", "metadata.mirror"
NAMES = {Side.FIRST: METADATA, Side.SECOND: MIRROR}
MetadataDevice = FileDevice | MirroredDevice
_log = logging.getLogger(__name__)

OPENED = "user.replicator.opened"
"""The attribute of a metadata file in which pool/identity counts its openings."""

_SUMS = struct.Struct("<QQ")  # `base` and `result` of thin/dirty's header
_SUMS_OFFSET = 64
_BOOT_OFFSET = 16
_NOT_THE_DEVICE = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
"""Why a copy can't be opened though it may be whole: that must not make it a lost one."""
_LOOKS = 5  # at two superblocks that somebody may be writing meanwhile
_UUID = slice(16, 32)
_DIGITS = 20  # of a 64-bit number: a longer text is none of ours


def is_mirrored(path: Path) -> bool:
    """Whether the pool in that directory has, or should have, a mirror of its metadata."""
    return os.path.lexists(path / MIRROR) or (path / STATE).exists()


def has_metadata(path: Path) -> bool:
    """Whether a pool's metadata is in that directory, were it only a mirror's copy."""
    return (path / METADATA).exists() or (path / MIRROR).exists()


def open_metadata(
    path: Path, *, read_only: bool = True, exclusive: bool = False, settled: bool = False
) -> MetadataDevice:
    """The metadata of the pool at `path`, to be closed.

    `settled`: nobody writes it meanwhile. For writing, `settle_metadata` comes before the first write.
    """
    if not is_mirrored(path):
        return _taken(path / METADATA, read_only=read_only, exclusive=exclusive)
    state = load_state(path)
    if state is not None and state.dropping:
        if not read_only:
            drop_files(path, state)
        return _taken(_kept(path, state), read_only=read_only, exclusive=exclusive)
    if read_only and not settled:
        return _beside(path, exclusive=exclusive)
    if state is None:
        state = MirrorState()
        if not read_only:
            save_state(path, state)
    with ExitStack() as held:
        found = _Found.open(path, state, held, read_only=read_only, exclusive=exclusive)
        choice = found.choice(state)
        device = MirroredDevice(
            str(path / METADATA),
            found.copies,
            state,
            partial(save_state, path),
            behind=choice.behind,
            why_behind=choice.why,
            read_only=read_only,
        )
        held.pop_all()
        return device


def settle_metadata(
    metadata: MetadataDevice,
    superblock: Superblock,
    progress: Progress = lambda _: None,
    telling: Callable[[str], None] = lambda _: None,
) -> None:
    """Before the first write, and once `superblock` is known to be the pool's: both copies, or one durably lost."""
    if isinstance(metadata, MirroredDevice):
        metadata.settle(lambda it: _may_overwrite(it, superblock, metadata.size_bytes), progress, telling)


def says_gone(error: ReplicatorError) -> bool:
    """Whether opening a copy failed because it is no more: one that may be whole must not become a lost one."""
    if isinstance(error, DeviceError):
        return error.errno not in _NOT_THE_DEVICE
    return isinstance(error, (NotFoundError, UsageError))


def files_of(metadata: BlockDevice) -> list[FileDevice]:
    """The files or devices that it stands on."""
    copies = metadata.copies.values() if isinstance(metadata, MirroredDevice) else [metadata]
    return [each for each in copies if isinstance(each, FileDevice)]


def copies_in_use(path: Path) -> Iterator[Path]:
    """The names of the copies that an owner writes, the mirror first."""
    lost = (load_state(path) or MirrorState()).lost if is_mirrored(path) else Side.SECOND
    yield from (path / NAMES[side] for side in reversed(Side) if side is not lost)


def dirty_sums(dirty: Path) -> tuple[int, ...]:
    """The superblocks that the `dirty` file names; none where there is no such file."""
    try:
        with dirty.open("rb") as file:
            return _SUMS.unpack(os.pread(file.fileno(), _SUMS.size, _SUMS_OFFSET))
    except (OSError, struct.error):
        return ()


def is_of_this_boot(dirty: Path) -> bool:
    """Whether `dirty` was used in this boot: after another one it may lag behind the disk, since nothing syncs it."""
    try:
        with dirty.open("rb") as file:
            return os.pread(file.fileno(), len(boot_id()), _BOOT_OFFSET) == boot_id()
    except OSError:
        return False


def attribute_number(device: FileDevice, name: str) -> int:
    """A number beside a file's content; 0 where there is none."""
    if device.is_block_device:
        return 0
    try:
        text = os.getxattr(device.fileno(), name)
    except OSError:
        return 0
    return int(text) if len(text) <= _DIGITS and text.isdigit() else 0


def _taken(file: Path, *, read_only: bool, exclusive: bool) -> FileDevice:
    """Opened, and held where it may be written (D4)."""
    device = FileDevice(file, read_only=read_only, exclusive=exclusive)
    try:
        if exclusive and not read_only:
            hold_files([device])
    except BaseException:
        device.close()
        raise
    return device


@dataclass(slots=True)
class _Found:
    """What there is of both copies: those that could be opened, and what was seen of each."""

    path: Path
    copies: dict[Side, FileDevice] = field(default_factory=dict)
    problems: dict[Side, ReplicatorError] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, state: MirrorState, held: ExitStack, *, read_only: bool, exclusive: bool) -> _Found:
        """Open what can be; readers leave a lost copy alone."""
        found = cls(path)
        for side, name in NAMES.items():
            if read_only and state.lost is side:
                continue
            try:
                device = _taken(path / name, read_only=read_only, exclusive=exclusive)
            except ReplicatorError as error:
                found.problems[side] = error
                if not says_gone(error):
                    if state.lost is not side:
                        raise
                    _log.warning("%s stays lost: %s", path / name, error.message)
            else:
                found.copies[side] = held.enter_context(device)
        return found

    def seen(self, side: Side) -> Seen:
        """A copy's superblock, or why it has none."""
        name = str(self.path / NAMES[side])
        device = self.copies.get(side)
        if device is None:
            return Seen(name, problem=self.problems.get(side))
        try:
            device.refresh_size()
            superblock = read_superblock(device)
            needed = superblock.metadata_space_map.nr_blocks * METADATA_BLOCK_BYTES
            if device.size_bytes < needed:
                raise DamageError(f"{name} has {device.size_bytes} bytes, and {needed} are in use")
            block0 = device.pread(METADATA_BLOCK_BYTES, 0)
        except ReplicatorError as error:
            return Seen(name, problem=error)
        return Seen(name, superblock, superblock_sum(block0), attribute_number(device, OPENED))

    def choice(self, state: MirrorState) -> Choice:
        """Which copy isn't used; the error where none can be."""
        if state.lost is not None:
            other = self.seen(state.lost.other)
            if other.superblock is None:
                raise _only_lost_left(self.path, state, other)
            return Choice(state.lost, state.why)
        dirty = self.path / "dirty"
        sums = dirty_sums(dirty) if is_of_this_boot(dirty) else ()
        return choose(self.seen(Side.FIRST), self.seen(Side.SECOND), sums)


def _only_lost_left(path: Path, state: MirrorState, other: Seen) -> ReplicatorError:
    assert state.lost is not None
    lost, problem = path / NAMES[state.lost], other.problem.message if other.problem else "it isn't there"
    since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(state.since_ns // 10**9))
    aside = f"mv {other.name} elsewhere, then " if os.path.lexists(other.name) else ""
    return DamageError(
        f"{other.name} can't be used ({problem}), and {lost} was lost on {since}: it lacks what was written since",
        mend=f"bring {other.name} back; or see what is left: replicator pool repair {path} --dry-run; "
        f"or go on with the older copy: {aside}rm {path / STATE}",
    )


def _beside(path: Path, *, exclusive: bool) -> MetadataDevice:
    """For a reader beside whoever writes: D3."""
    watch = _Watch(path, exclusive)
    state, copies = watch.open()
    return MirroredDevice(
        str(path / METADATA), copies, state, partial(save_state, path), read_only=True, look=watch.look
    )


class _Watch:
    """The copies that may be read, opened anew when mirror.json changes; earlier ones stay open for other threads.

    What was seen counts as seen once the copies are open: where they can't be, the next look tries again. Looks follow
    one another (the device's turn, M6 of pdata/mirror).
    """

    def __init__(self, path: Path, exclusive: bool) -> None:
        self._path, self._exclusive = path, exclusive
        self._seen: tuple[int, int, int] | None = None
        self._lost: tuple[Side | None, int] = (None, 0)

    def open(self) -> tuple[MirrorState, Copies]:
        """What mirror.json says now, and the copies that have a superblock and the same one."""
        stamp = stamp_of(self._path)
        state = load_state(self._path) or MirrorState()
        with ExitStack() as held:
            found = _Found.open(self._path, state, held, read_only=True, exclusive=self._exclusive)
            for _ in range(_LOOKS):
                first, second = found.seen(Side.FIRST), found.seen(Side.SECOND)
                good = {side: it for side, it in zip(Side, (first, second), strict=True) if it.superblock is not None}
                if len(good) == len(found.copies) and len({it.sum for it in good.values()}) < 2:
                    break
            if not good:
                raise _problem_of(self._path, state, first, second)
            if len(good) > 1 and first.sum != second.sum:
                del good[Side.SECOND]
            held.pop_all()
        self._seen, self._lost = stamp, (state.lost, state.since_ns)
        for side in found.copies.keys() - good.keys():
            found.copies[side].close()
        return state, {side: found.copies[side] for side in good}

    def look(self) -> Copies | None:
        """The copies to read from now, if mirror.json changed."""
        stamp = stamp_of(self._path)
        if stamp == self._seen:
            return None
        state = load_state(self._path) or MirrorState()
        if (state.lost, state.since_ns) == self._lost:
            self._seen = stamp
            return None
        return self.open()[1]


def _problem_of(path: Path, state: MirrorState, first: Seen, second: Seen) -> ReplicatorError:
    if state.lost is not None:
        return _only_lost_left(path, state, first if state.lost is Side.SECOND else second)
    assert first.problem is not None
    return first.problem


def _may_overwrite(device: BlockDevice, superblock: Superblock, size_bytes: int) -> bool:
    """D2; a file that is too short is made as long as the other copy first."""
    if not isinstance(device, FileDevice):
        return False
    try:
        if device.refresh_size() < size_bytes and not device.is_block_device:
            device.grow(size_bytes)
            device.preallocate(0, size_bytes)
        if device.size_bytes < size_bytes:
            return False
        block0 = device.pread(METADATA_BLOCK_BYTES, 0)
        if device.is_block_device:
            return any(superblock.uuid) and block0[_UUID] == superblock.uuid
        return Superblock.unpack(block0, 0, device.name).uuid == superblock.uuid
    except FormatError:
        return True
    except ReplicatorError:
        return False


def drop_files(path: Path, state: MirrorState) -> None:
    """The copy that isn't lost becomes `metadata`, the other one and mirror.json go; as far as that isn't done yet."""
    try:
        if state.lost is Side.FIRST and os.path.lexists(path / MIRROR):
            (path / MIRROR).replace(path / METADATA)
        (path / MIRROR).unlink(missing_ok=True)
        sync_folder(path)
    except OSError as error:
        raise DeviceError(f"{path / MIRROR}", 0, error.errno or errno.EIO, error.strerror or str(error)) from error
    remove_state(path)


def _kept(path: Path, state: MirrorState) -> Path:
    """The copy that stays, while the other one is being dropped."""
    return path / (MIRROR if state.lost is Side.FIRST and os.path.lexists(path / MIRROR) else METADATA)
