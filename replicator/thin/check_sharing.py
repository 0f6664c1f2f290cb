"""What a check asks of devices and mappings: do the records agree, and does no mapping claim to be unshared wrongly?

Used by thin/check. Which devices reach a leaf is worked out from above, parents first: each node knows how many live
devices reach it, and the least snapshotted_time among them. The held copy's devices don't take part: a metadata
snapshot freezes mappings, not data.

The rule of sharing (dm-thin: a mapping counts as shared iff snapshotted_time > time), as it is tested
  H1  In a leaf that two live devices reach, every time is below the least snapshotted_time of those devices.
  H2  In a leaf that one live device reaches, a mapping with time >= snapshotted_time names a data block that no other
      live leaf names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.pdata.block import Words
from replicator.pdata.node import DETAILS_DTYPE, Nodes
from replicator.thin.forest import Subtrees
from replicator.thin.mapping import data_blocks, times
from replicator.thin.report import FindingKind, Findings, Severity
from replicator.thin.superblock import Superblock

_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)
_ONE = np.uint32(1)
_SHOWN = 5  # devices with a wrong mapped_blocks that are named one by one


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """The devices of one superblock: those of the top-level tree, with their details where there are some."""

    ids: Words
    roots: Words
    detail_ids: Words
    details: npt.NDArray[Any]

    @staticmethod
    def of(roots: list[tuple[Words, npt.NDArray[Any]]], details: list[tuple[Words, npt.NDArray[Any]]]) -> DeviceTable:
        """From the pieces of two walks."""
        empty = np.empty(0, dtype=np.uint64)
        return DeviceTable(
            np.concatenate([empty, *(keys for keys, _ in roots)]),
            np.concatenate([empty, *(values for _, values in roots)]),
            np.concatenate([empty, *(keys for keys, _ in details)]),
            np.concatenate([np.empty(0, dtype=DETAILS_DTYPE), *(values for _, values in details)]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def compare_sets(self, findings: Findings, which: str) -> None:
        """Both trees must know the same devices."""
        for here, there, tree in (
            (self.ids, self.detail_ids, "device details"),
            (self.detail_ids, self.ids, "top-level mapping"),
        ):
            odd = np.setdiff1d(here, there)
            for dev_id in odd[:1].tolist():
                where, expected = f"{which}device {dev_id}", f"an entry in the {tree} tree"
                kind = FindingKind.DEVICE_SETS
                findings.add(Severity.DAMAGE, kind, where, expected, "none", count=len(odd))

    def compare_times(self, findings: Findings, superblock: Superblock) -> None:
        """Records can't be younger than the pool."""
        for name, limit, kind, severity in (
            ("creation_time", superblock.time, FindingKind.TIME, Severity.DAMAGE),
            ("snapshotted_time", superblock.time, FindingKind.TIME, Severity.DAMAGE),
            ("transaction_id", superblock.transaction_id, FindingKind.TRANSACTION_ID, Severity.WARNING),
        ):
            late = np.flatnonzero(self.details[name] > limit)
            for at in late[:1].tolist():
                where, found = f"device {int(self.detail_ids[at])}, {name}", int(self.details[name][at])
                findings.add(severity, kind, where, f"at most {limit}, as the superblock says", found, count=len(late))

    def compare_mapped(self, below: Subtrees, findings: Findings, which: str) -> None:
        """mapped_blocks must be the number of entries in the device's tree."""
        _, mine, records = np.intersect1d(self.ids, self.detail_ids, return_indices=True)
        inside = self.roots[mine] < len(below.entries)  # the others are findings already
        mine, records = mine[inside], records[inside]
        true = below.entries[self.roots[mine].astype(np.int64)].astype(np.uint64)
        said = self.details["mapped_blocks"][records]
        wrong = np.flatnonzero(true != said)
        for at in wrong[:_SHOWN].tolist():
            where = f"{which} {int(self.ids[mine[at]])}"
            findings.add(Severity.DAMAGE, FindingKind.MAPPED_BLOCKS, where, int(true[at]), int(said[at]))
        findings.count_only(Severity.DAMAGE, FindingKind.MAPPED_BLOCKS, max(0, len(wrong) - _SHOWN))

    def snapshotted_times(self) -> Words:
        """The snapshotted_time of each device of the top-level tree; one without details has none to compare with."""
        result = np.full(len(self.ids), _NEVER)
        _, mine, records = np.intersect1d(self.ids, self.detail_ids, return_indices=True)
        result[mine] = self.details["snapshotted_time"][records]
        return result


class MappingVisitor:
    """Sees every distinct node of the mapping forest once, parents first: counts data blocks, tests times."""

    def __init__(
        self, superblock: Superblock, live: DeviceTable, metadata_nr_blocks: int, findings: Findings, *, counting: bool
    ) -> None:
        """`counting` off: the data map's size is a lie, so that no counts are kept."""
        self.findings = findings
        self.time = np.uint64(superblock.time)
        self.data_nr_blocks = superblock.data_space_map.nr_blocks if counting else 0
        self.counting = counting
        self.data_counts = np.zeros(self.data_nr_blocks, dtype=np.uint32)
        self._has_held = bool(superblock.held_root)
        self._live_counts = np.zeros(self.data_nr_blocks, dtype=np.uint32) if self._has_held else self.data_counts
        self._claimed = np.zeros(self.data_nr_blocks, dtype=bool)
        self._reach = np.zeros(metadata_nr_blocks, dtype=np.uint32)
        self._least = np.full(metadata_nr_blocks, _NEVER)
        inside = live.roots < metadata_nr_blocks
        roots = live.roots[inside].astype(np.int64)
        np.add.at(self._reach, roots, _ONE)
        np.minimum.at(self._least, roots, live.snapshotted_times()[inside])

    def branches(self, nodes: Nodes) -> None:
        """Hand down who reaches the children."""
        parents = np.repeat(nodes.blocks.astype(np.int64), nodes.count)
        children = nodes.flat()[1]
        inside = children < len(self._reach)
        parents, places = parents[inside], children[inside].astype(np.int64)
        np.add.at(self._reach, places, self._reach[parents])
        np.minimum.at(self._least, places, self._least[parents])

    def leaves(self, nodes: Nodes) -> None:
        """Count the data blocks of distinct leaves, and test their times."""
        keys, values = nodes.flat()
        blocks, mapped_at = data_blocks(values), times(values)
        places = nodes.blocks.astype(np.int64)
        reach, least = np.repeat(self._reach[places], nodes.count), np.repeat(self._least[places], nodes.count)
        self._report(FindingKind.TIME, keys, mapped_at > self.time, mapped_at, f"times of at most {int(self.time)}")
        late = mapped_at >= least
        expected = "a time before each sharer's snapshotted_time"
        self._report(FindingKind.SHARING_TIME, keys, late & (reach > 1), mapped_at, expected)
        if not self.counting:
            return
        outside = blocks >= self.data_nr_blocks
        self._report(FindingKind.DATA_BLOCK, keys, outside, blocks, f"data blocks below {self.data_nr_blocks}")
        index = blocks[~outside].astype(np.int64)
        np.add.at(self.data_counts, index, _ONE)
        reached = (reach > 0)[~outside]
        if self._has_held:
            np.add.at(self._live_counts, index[reached], _ONE)
        self._claimed[index[reached & late[~outside]]] = True

    def _report(
        self, kind: FindingKind, keys: Words, wrong: npt.NDArray[np.bool_], found: Words, expected: str
    ) -> None:
        for at in np.flatnonzero(wrong)[:1].tolist():
            where = f"mapping of virtual block {int(keys[at])}"
            self.findings.add(Severity.DAMAGE, kind, where, expected, int(found[at]), count=int(wrong.sum()))

    def finish(self) -> None:
        """H2, once all counts are known."""
        wrong = np.flatnonzero(self._claimed & (self._live_counts > 1))
        for block in wrong[:1].tolist():
            where = f"data block {block}"
            expected, found = "one mapping, as its time claims", f"{int(self._live_counts[block])}"
            kind = FindingKind.SHARING_TIME
            self.findings.add(Severity.DAMAGE, kind, where, expected, found, count=len(wrong))
