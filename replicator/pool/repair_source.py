"""Which copy of a pool's metadata a repair reads, and which commands put the repaired one in its place.

    the copies                                            read
    no mirror                                             `metadata`
    a reader may open them (pool/metadata_device)         what it reads: both, or one
    one is lost, and the other has no superblock          the other: what was answered since the loss is in it alone
    one is lost, and the other isn't there                the lost one, which is older: that is said
    they contradict each other, or nobody knows whether   the one with the higher transaction id, else the first; why
    one is lost (mirror.json is none)                     nobody may open them is said

Invariants
  S1  A lost copy is read only where the other is gone: not where that is bad, busy, or may not be opened by this user.
  S2  The steps remove nothing: each copy, mirror.json and `dirty` are kept under names that nothing has yet.

The repaired metadata takes the place of `metadata` where that was read. Where only the mirror was, the names of both
are moved away, links as links, and a file becomes `metadata`: its device may be the one that failed.

Failures: ConflictError (in use), DeviceError, those of pool/metadata_device where neither copy is there.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.errors import DamageError, ReplicatorError
from replicator.pdata.mirror import MirroredDevice, Side
from replicator.pool.metadata_device import (
    METADATA,
    MIRROR,
    NAMES,
    MetadataDevice,
    is_mirrored,
    open_metadata,
    says_gone,
)
from replicator.pool.mirror_state import STATE, load_state
from replicator.thin.superblock import Superblock, read_superblock


@dataclass(frozen=True, slots=True)
class Source:
    """What is repaired: `read` names the copies, `note` says why not both ("": they are, or there is no mirror).

    `is_older`: it is a lost copy, which lacks what was written since. `other`: the superblock of one that isn't read.
    """

    device: MetadataDevice
    read: tuple[Path, ...]
    note: str = ""
    is_older: bool = False
    other: Superblock | None = None


def open_source(path: Path) -> Source:
    """The better of both copies for reading, however bad (S1); its `device` is to be closed."""
    if not is_mirrored(path):
        return _alone(path / METADATA)
    try:
        device = open_metadata(path, exclusive=True, settled=True)
    except ReplicatorError as refusal:
        if not isinstance(refusal, DamageError) and not says_gone(refusal):
            raise
        return _refused(path, refusal)
    if not isinstance(device, MirroredDevice):
        return Source(device, (Path(device.name),))
    note = "" if device.unused is None else f"{path / NAMES[device.unused[0]]} isn't used: {device.unused[1]}"
    return Source(device, tuple(path / NAMES[side] for side in device.copies), note)


def _refused(path: Path, refusal: ReplicatorError) -> Source:
    """What is read where nobody may open the pool as it is."""
    lost = _lost(path)
    seen = {side: _superblock(path / name) for side, name in NAMES.items()}
    for side in _by_worth(lost, seen):
        try:
            source = _alone(path / NAMES[side])
        except ReplicatorError as error:
            if not says_gone(error):
                raise
            continue
        older = side is lost
        note = f"{refusal.message}; what is read is {path / NAMES[side]}{', the older one' if older else ''}"
        return Source(source.device, source.read, note, older, seen[side.other])
    raise refusal


def _lost(path: Path) -> Side | None:
    with suppress(ReplicatorError):
        state = load_state(path)
        return None if state is None else state.lost
    return None


def _by_worth(lost: Side | None, seen: dict[Side, Superblock | None]) -> list[Side]:
    """The copy to be read, then the other."""

    def worth(side: Side) -> tuple[bool, int]:
        found = seen[side]
        return side is not lost, -1 if found is None else found.transaction_id

    return sorted(Side, key=worth, reverse=True)


def _alone(file: Path) -> Source:
    return Source(FileDevice(file, read_only=True, exclusive=True), (file,))


def _superblock(file: Path) -> Superblock | None:
    with suppress(ReplicatorError), FileDevice(file, read_only=True) as device:
        return read_superblock(device)
    return None


def steps_in_place(path: Path, target: Path, read: tuple[Path, ...]) -> tuple[str, ...]:
    """What puts the repaired metadata of `target` in place, as commands for a shell (S2)."""
    return (*_placing(path, target, read), f"replicator pool check {shlex.quote(str(path))}")


def _placing(path: Path, target: Path, read: tuple[Path, ...]) -> Iterator[str]:
    metadata = path / METADATA
    if metadata in read:
        yield from _replacing(metadata, target)
    else:
        yield from _moving(metadata)
        yield f"cp {shlex.quote(str(target))} {shlex.quote(str(metadata))}"
    for name in (MIRROR, STATE, "dirty"):
        yield from _moving(path / name)


def _replacing(metadata: Path, target: Path) -> Iterator[str]:
    """The new one where the old one is: what a link leads to, or a device's content."""
    place, kept = metadata.resolve(), shlex.quote(str(_kept(metadata)))
    old, new = shlex.quote(str(place)), shlex.quote(str(target))
    if place.is_block_device():
        yield f"dd if={old} of={kept} bs=1M conv=fsync"
        yield f"dd if={new} of={old} bs=1M conv=fsync,nocreat"
    else:
        yield f"mv {old} {kept}"
        yield f"cp {new} {old}"


def _moving(file: Path) -> Iterator[str]:
    if os.path.lexists(file):
        yield f"mv {shlex.quote(str(file))} {shlex.quote(str(_kept(file)))}"


def _kept(file: Path) -> Path:
    """A name that nothing has yet."""
    first = file.with_name(f"{file.name}.damaged")
    names = (first if number == 1 else first.with_name(f"{first.name}.{number}") for number in count(1))
    return next(each for each in names if not os.path.lexists(each))
