"""Giving a pool a mirror of its metadata, another one for a lost copy, comparing the two, and taking the mirror away.

What `pool mirror` and `pool create --metadata-mirror` stand on, with nobody else having the pool open. All begin by
opening the pool wholly and closing it again (pool/opening), which settles what can be settled by itself.

    add, or replace a copy; dies …      on disk                                    next opening
    target made, copied to              the pool as it was; part of a copy that    as it was; the same command again
                                        nothing leads to
    `metadata.mirror` leads to it       a whole copy; mirror.json as it was: none  both; of a lost one: compared again
    mirror.json written                 both copies                                both

    drop; dies …
    mirror.json says `dropping`         both copies                                the opener goes on (D2 below)
    the kept copy is `metadata`         one copy; mirror.json                      the same
    mirror.json removed                 a pool without a mirror                    -

Invariants
  R1  Nothing is copied onto what holds something: a target is new, or begins with zeros, or names this pool in its
      block 0 and isn't a copy in use.
  R2  A drop that was begun is ended by the next one who opens the pool for writing; readers take the copy that stays.
  R3  A target is held (P9) from before it is looked at until the pool has it, or it is given up.

Failures: ConflictError (in use, not empty), UsageError (the same device, too small), NotFoundError, those of opening.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from replicator.blockdev.file import FileDevice, sync_folder
from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError, DeviceError, NotFoundError, ReplicatorError, UsageError
from replicator.pdata.mirror import MirroredDevice, MirrorState, Side
from replicator.pdata.mirror_copying import Progress, TargetError, bring_up_to_date
from replicator.pool.creation import NewPool, PoolPlan, create_pool
from replicator.pool.locks import PoolLock, hold_files, refuse_network_file_system
from replicator.pool.metadata_device import (
    MIRROR,
    NAMES,
    drop_files,
    is_mirrored,
    open_metadata,
    settle_metadata,
)
from replicator.pool.mirror_state import load_state, save_state
from replicator.pool.opening import own_pool
from replicator.thin.superblock import read_superblock
from replicator.units import METADATA_BLOCK_BYTES, MIB, format_size

_UUID = slice(16, 32)


@dataclass(frozen=True, slots=True)
class MirrorFacts:
    """What is known of a pool's mirror without opening it: where the copies are, and which isn't used since when."""

    first: Path
    second: Path
    unused: Path | None
    since_ns: int
    why: str
    healed_blocks: int


def mirror_facts(path: Path, metadata: BlockDevice | None = None) -> MirrorFacts | None:
    """How the mirror of the pool at `path` is, or of its `metadata`, open without an owner; None where it has none."""
    if not is_mirrored(path):
        return None
    state = load_state(path) or MirrorState()
    names = {side: path / name for side, name in NAMES.items()}
    unused, why = (None, "") if state.lost is None else (names[state.lost], state.why)
    if unused is None and isinstance(metadata, MirroredDevice) and metadata.unused is not None:
        unused, why = names[metadata.unused[0]], metadata.unused[1]
    for name in names.values():
        if unused is None and not name.exists():
            unused, why = name, "it isn't there"
    first, second = (_place(each) for each in names.values())
    return MirrorFacts(first, second, unused, state.since_ns, why, state.healed_blocks)


def create_mirrored(path: Path, plan: PoolPlan, target: Path) -> NewPool:
    """A new pool whose metadata has a mirror in `target`; where only the mirror fails, the pool stays: that is told."""
    for each in (plan.metadata, plan.data):
        if each is not None and _is_same(each, target):
            raise UsageError(f"{target} can't be the mirror of the metadata, and {each} too")
    if target.exists():
        with FileDevice(target, exclusive=True) as device:
            _require_empty(device, None)
    new = create_pool(path, plan)
    try:
        add_mirror(path, target)
    except ReplicatorError as error:
        raise _type_of(error)(
            f"{path} is made, but its metadata has no mirror: {error.message}",
            mend=f"replicator pool mirror {path} --to DEVICE",
        ) from error
    return new


def _type_of(error: ReplicatorError) -> type[ReplicatorError]:
    """Types with more than a message are told as the plain one."""
    return type(error) if type(error) in (UsageError, ConflictError, NotFoundError) else ReplicatorError


def add_mirror(path: Path, target: Path, progress: Progress = lambda _: None) -> Path:
    """Copy the metadata to `target` and use it: for the lost copy, else as the mirror; returns the copy's name."""
    with _alone(path) as metadata:
        state = load_state(path) or MirrorState()
        side = metadata.unused[0] if isinstance(metadata, MirroredDevice) and metadata.unused else Side.SECOND
        name = path / NAMES[side]
        in_use = [path / each for other, each in NAMES.items() if other is not side] + [path / "data"]
        for each in in_use if side is state.lost or not is_mirrored(path) else [*in_use, name]:
            if _is_same(each, target):
                raise UsageError(f"{target} is the pool's {each.name} already", mend="name another device or file")
        if isinstance(metadata, MirroredDevice):
            metadata.release_unused()
        with closing(_target_device(path, name, target, metadata.size_bytes)) as device:
            hold_files([device])
            _require_empty(device, read_superblock(metadata).uuid)
            _make_as_long(device, metadata.size_bytes)
            _copy(metadata, device, progress)
            _lead_to(name, target)
            whole = replace(state, lost=None, since_ns=0, why="")
            if isinstance(metadata, MirroredDevice):
                metadata.record(replace(whole, healed_blocks=metadata.state.healed_blocks))
            else:
                save_state(path, whole)
        return name


def compare_copies(path: Path, progress: Progress = lambda _: None) -> int:
    """Heal both copies from each other, then make the mirror what the first one is; returns the blocks healed."""
    with _alone(path) as metadata:
        if not isinstance(metadata, MirroredDevice):
            raise UsageError(f"{path} has no mirror of its metadata", mend=f"replicator pool mirror {path} --to DEVICE")
        if metadata.unused is not None:
            side, why = metadata.unused
            raise ConflictError(
                f"{path / NAMES[side]} can't be brought up to date: {why}",
                mend=f"make it come back; or take another one: replicator pool mirror {path} --to DEVICE",
            )
        before = metadata.state.healed_blocks
        for begin in range(0, metadata.size_bytes, MIB):
            metadata.pread(min(MIB, metadata.size_bytes - begin), begin)
        metadata.flush()
        metadata.doubt(Side.SECOND, "it is being compared")
        settle_metadata(metadata, read_superblock(metadata), progress)
        return metadata.state.healed_blocks - before


def drop_mirror(path: Path) -> Path:
    """Go on without a mirror: the copy that isn't lost stays, as `metadata`; returns where it is."""
    if not is_mirrored(path):
        raise NotFoundError(f"{path} has no mirror of its metadata")
    with _alone(path) as metadata:
        if isinstance(metadata, MirroredDevice):
            lost = Side.SECOND if metadata.unused is None else metadata.unused[0]
            metadata.record(replace(metadata.state, lost=lost, since_ns=time.time_ns(), dropping=True))
            drop_files(path, metadata.state)
    return _place(path / NAMES[Side.FIRST])


@contextmanager
def _alone(path: Path) -> Iterator[MirroredDevice | FileDevice]:
    """The metadata for writing, with nobody else having the pool, after it was opened and closed as a pool."""
    own_pool(path).close()
    with ExitStack() as held:
        held.enter_context(PoolLock.own(path))
        held.enter_context(PoolLock.only_writer(path))
        yield held.enter_context(closing(open_metadata(path, read_only=False, exclusive=True)))


def _copy(metadata: BlockDevice, target: FileDevice, progress: Progress) -> None:
    try:
        bring_up_to_date(metadata, target, progress)
    except TargetError as failed:
        raise failed.error from failed


def _target_device(path: Path, name: Path, target: Path, size_bytes: int) -> FileDevice:
    """The device or file to copy to; a new file where there is none (beside `name`, if it is to be that very name)."""
    refuse_network_file_system(target.parent if not target.exists() else target)
    if _is_own_name(name, target):
        new = name.with_name(f"{name.name}.new")
        new.unlink(missing_ok=True)
        return FileDevice.create(new, size_bytes)
    if target.parent.resolve() == path.resolve():
        raise UsageError(f"{target}: in the pool's own directory a copy is called {MIRROR}")
    if not target.exists():
        return FileDevice.create(target, size_bytes)
    return FileDevice(target, exclusive=True)


def _require_empty(device: FileDevice, uuid: bytes | None) -> None:
    """R1; `uuid` is the pool's."""
    length = min(METADATA_BLOCK_BYTES, device.size_bytes)
    block0 = device.pread(length, 0)
    if any(block0) and (uuid is None or block0[_UUID] != uuid):
        raise ConflictError(
            f"{device.name} isn't empty: its first 4 KiB aren't all zeros",
            mend=f"if what it holds may go: blkdiscard, or dd if=/dev/zero of={device.name} bs=4096 count=1",
        )


def _make_as_long(device: FileDevice, size_bytes: int) -> None:
    if device.size_bytes < size_bytes:
        if device.is_block_device:
            raise UsageError(
                f"{device.name} has {format_size(device.size_bytes)}, and the metadata {format_size(size_bytes)}",
                mend="take a device of that size or more",
            )
        device.grow(size_bytes)
    device.preallocate(0, size_bytes)


def _lead_to(name: Path, target: Path) -> None:
    """Make `name` the copy in `target`, durably, in one rename."""
    new = name.with_name(f"{name.name}.new")
    try:
        if not _is_own_name(name, target):
            new.unlink(missing_ok=True)
            new.symlink_to(target.absolute())
        new.replace(name)
        sync_folder(name.parent)
    except OSError as error:
        raise DeviceError(f"placing {name}", 0, error.errno or 0, error.strerror or str(error)) from error


def _is_own_name(name: Path, target: Path) -> bool:
    """Whether the target is to be a file of that name in the pool's directory."""
    return target.name == name.name and target.parent.resolve() == name.parent.resolve()


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other) or _device_number(one) == _device_number(other) != 0
    return one.absolute() == other.absolute()


def _device_number(path: Path) -> int:
    return path.stat().st_rdev if path.is_block_device() else 0


def _place(name: Path) -> Path:
    """Where a copy is: the file, or what its link leads to."""
    return name.readlink() if name.is_symlink() else name
