"""Comparing the two copies of a pool's metadata in what a check has read: all that is reachable, and nothing else.

Used by pool/inspection. Blocks that nothing reaches may differ: a power cut leaves that behind, and it harms nobody.

    finding                                             severity
    a block that is bad in one copy, or in both         damage: the other copy is all that is left of it
    two good blocks that differ                         damage of its own kind: one copy lost a write, and nobody here
                                                        knows which; `--compare` would take the first's
    a copy that isn't in use                            warning: the pool is whole, and has no mirror
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError
from replicator.pdata.mirror import MirroredDevice, Side
from replicator.pdata.mirror_copying import is_good, read_block
from replicator.pool.metadata_device import NAMES
from replicator.thin.report import FindingKind, Findings, Severity
from replicator.units import METADATA_BLOCK_BYTES


def note_reads(device: BlockDevice) -> None:
    """From now on, what is read of a mirrored device is compared by `compare_reads`."""
    if isinstance(device, MirroredDevice):
        device.read_marks = np.zeros(device.size_bytes // METADATA_BLOCK_BYTES, dtype=np.bool_)


def compare_reads(device: BlockDevice, findings: Findings, *, beside_owner: bool = False) -> None:
    """Every block that was read since, in both copies; block 0 isn't, where an owner may be writing it."""
    if not isinstance(device, MirroredDevice) or device.read_marks is None:
        return
    if device.unused is not None and not beside_owner:
        side, why = device.unused
        findings.add(Severity.WARNING, FindingKind.MIRROR, NAMES[side], "a copy in use", f"one that isn't: {why}")
    marks, copies = device.read_marks, device.copies
    if len(copies) < len(Side):
        return
    if beside_owner:
        marks[0] = False
    for number in np.flatnonzero(marks).tolist():
        one, other = (read_block(copies[side], number) for side in Side)
        if one != other or isinstance(one, DeviceError):
            where = f"metadata block {number}"
            expected = f"the same in {NAMES[Side.FIRST]} and {NAMES[Side.SECOND]}"
            bad = list(_bad(one, other, number))
            kind = FindingKind.MIRROR if bad else FindingKind.MIRROR_DIFFERS
            found = f"bad in {' and '.join(bad)}" if bad else "two good blocks that differ"
            findings.add(Severity.DAMAGE, kind, where, expected, found)


def _bad(one: bytes | DeviceError, other: bytes | DeviceError, number: int) -> Iterator[str]:
    for side, found in zip(Side, (one, other), strict=True):
        if isinstance(found, DeviceError) or not is_good(found, number):
            yield NAMES[side]
