"""Compares the reference counts that a check worked out with what a space map says.

Second half of thin/check, once for the data and once for the metadata. A space map is right when for every block

    count 0, 1, 2     the bitmap says so, and the overflow tree has no key
    count 3 and more  the bitmap says 3, and the overflow tree holds the count

and when its hints don't hide free space: nr_free is the number of free entries (of a partial bitmap with or without the
tail that doesn't exist: the kernel counts it, thin_restore C++ doesn't), no free entry lies below none_free_before, and
nr_allocated is the number of counted blocks.

Severities: a block that is counted and referred to by nothing is a LEAK, another wrong count DAMAGE. A wrong nr_free or
none_free_before makes the kernel see less or more space than there is: DAMAGE. nr_allocated is a WARNING, as
thin_restore C++ leaves it one too high.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, OVERFLOW, Counts, unpack_bitmap, unpack_index
from replicator.pdata.block import BlockKind, Words
from replicator.pdata.node import BITMAP_INDEX, INDEX_ENTRY_DTYPE, REF_COUNTS, Nodes
from replicator.pdata.smroot import SpaceMapRoot
from replicator.thin.forest import Census, Forest
from replicator.thin.report import FindingKind, Severity

_BITMAPS = 64  # read at once: a million counts


@dataclass(frozen=True, slots=True)
class SpaceMapContent:
    """A space map as read: index entries by bitmap number, and the overflow tree's keys and counts."""

    what: str
    root: SpaceMapRoot
    index: npt.NDArray[Any]
    overflow_keys: Words
    overflow_counts: Counts


def bitmap_count(nr_blocks: int) -> int:
    """How many bitmaps a map of `nr_blocks` has."""
    return -(-nr_blocks // ENTRIES_PER_BITMAP)


def read_data_map(census: Census, root: SpaceMapRoot) -> SpaceMapContent | None:
    """The data space map's index and overflow, references counted; None when they are damaged."""
    found: list[tuple[Words, npt.NDArray[Any]]] = []

    def on_leaves(nodes: Nodes) -> None:
        found.append(nodes.flat())

    roots = census.refer(np.array([root.bitmap_root], dtype=np.uint64), "bitmap root of the data space map")
    forest = Forest(census, BITMAP_INDEX, roots)
    forest.visit(on_leaves)
    keys, entries = _gathered(found, INDEX_ENTRY_DTYPE)
    whole = len(keys) == bitmap_count(root.nr_blocks) and (keys == np.arange(len(keys), dtype=np.uint64)).all()
    if forest.measure_subtrees() is None or not len(roots) or not whole:
        if len(roots) and forest.sound:
            expected = f"index entries for {bitmap_count(root.nr_blocks)} bitmaps"
            census.findings.add(Severity.DAMAGE, FindingKind.BITMAP_INDEX, "data space map", expected, f"{len(keys)}")
        return None
    return _with_overflow(census, "data", root, entries)


def read_metadata_map(census: Census, root: SpaceMapRoot) -> SpaceMapContent | None:
    """The metadata space map's index and overflow, references counted; None when they are damaged."""
    block = census.refer(np.array([root.bitmap_root], dtype=np.uint64), "index block of the metadata space map")
    block = census.claim(block, "the metadata space map's index")
    try:
        rows = census.store.read_blocks(block, BlockKind.INDEX)
    except FormatError as error:
        census.findings.from_error(FindingKind.BITMAP_INDEX, error)
        return None
    if not len(rows):
        return None
    entries = unpack_index(rows[0])
    used = bitmap_count(root.nr_blocks)
    if entries["block"][used:].any():
        where, expected = "metadata space map", f"{used} index entries"
        census.findings.add(Severity.DAMAGE, FindingKind.BITMAP_INDEX, where, expected, "more")
    return _with_overflow(census, "metadata", root, entries[:used])


def _with_overflow(census: Census, what: str, root: SpaceMapRoot, index: npt.NDArray[Any]) -> SpaceMapContent | None:
    found: list[tuple[Words, npt.NDArray[Any]]] = []

    def on_leaves(nodes: Nodes) -> None:
        found.append(nodes.flat())

    referred = census.refer(index["block"], f"bitmaps of the {what} space map")
    roots = census.refer(np.array([root.ref_count_root], dtype=np.uint64), f"overflow root of the {what} space map")
    distinct = np.unique(referred)
    claimed = census.claim(distinct, f"a bitmap of the {what} space map")
    forest = Forest(census, REF_COUNTS, roots)
    forest.visit(on_leaves)
    sound = forest.measure_subtrees() is not None
    if len(claimed) < len(index) or not len(roots) or not sound:
        return None
    keys, counts = _gathered(found, np.dtype("<u4"))
    return SpaceMapContent(what, root, index, keys, counts)


def _gathered(found: list[tuple[Words, npt.NDArray[Any]]], dtype: np.dtype[Any]) -> tuple[Words, npt.NDArray[Any]]:
    """All entries in the order of their keys: leaves come in the order of their blocks."""
    if not found:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=dtype)
    keys, values = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(keys, kind="stable")
    return keys[order], values[order]


def compare(census: Census, content: SpaceMapContent, counts: Counts) -> int:
    """Report where `content` differs from the true `counts`; returns how many blocks are really in use."""
    kind = FindingKind.DATA_COUNT if content.what == "data" else FindingKind.METADATA_COUNT
    said_in_use = 0
    for first, stored in _stored_counts(census, content):
        number = first // ENTRIES_PER_BITMAP
        true = counts[first : first + len(stored)]
        here = stored[: len(true)]
        _compare_bitmap(census, content, kind, first, here, np.minimum(true, OVERFLOW))
        _compare_hints(census, content, number, here)
        said_in_use += int(np.count_nonzero(here))
        if stored[len(true) :].any():
            where = f"{content.what} space map, bitmap {number}"
            census.findings.add(Severity.WARNING, kind, where, "zeros behind the last block", "counts")
    _compare_overflow(census, content, counts)
    if said_in_use != content.root.nr_allocated:
        where = f"{content.what} space map"
        kind = FindingKind.NR_ALLOCATED
        census.findings.add(Severity.WARNING, kind, where, said_in_use, content.root.nr_allocated)
    return int(np.count_nonzero(counts))


def _stored_counts(census: Census, content: SpaceMapContent) -> Iterator[tuple[int, Counts]]:
    """(first block, 16,320 counts) of each readable bitmap."""
    blocks = content.index["block"]
    for start in range(0, len(blocks), _BITMAPS):
        part = np.ascontiguousarray(blocks[start : start + _BITMAPS])
        for offset, row in _readable_bitmaps(census, part, 0):
            yield (start + offset) * ENTRIES_PER_BITMAP, unpack_bitmap(row)


def _readable_bitmaps(census: Census, blocks: Words, offset: int) -> Iterator[tuple[int, Words]]:
    try:
        rows = census.store.read_blocks(blocks, BlockKind.BITMAP)
    except FormatError as error:
        if len(blocks) == 1:
            census.findings.from_error(FindingKind.BITMAP_INDEX, error)
            return
        middle = len(blocks) // 2
        yield from _readable_bitmaps(census, blocks[:middle], offset)
        yield from _readable_bitmaps(census, blocks[middle:], offset + middle)
        return
    yield from enumerate(rows, offset)


def _compare_bitmap(
    census: Census, content: SpaceMapContent, kind: FindingKind, first: int, stored: Counts, true: Counts
) -> None:
    wrong = np.flatnonzero(stored != true)
    if not len(wrong):
        return
    leaked = true[wrong] == 0
    for severity, places in ((Severity.LEAK, wrong[leaked]), (Severity.DAMAGE, wrong[~leaked])):
        shown = 0
        for at in places.tolist():
            if not census.findings.has_room(severity, kind):
                break
            where = f"{content.what} block {first + at}"
            census.findings.add(severity, kind, where, _as_count(int(true[at])), _as_count(int(stored[at])))
            shown += 1
        census.findings.count_only(severity, kind, len(places) - shown)


def _as_count(count: int) -> str:
    return f"count {count}" if count < OVERFLOW else "count 3 or more"


def _compare_hints(census: Census, content: SpaceMapContent, number: int, stored: Counts) -> None:
    entry = content.index[number]
    where = f"{content.what} space map, bitmap {number}"
    free = np.flatnonzero(stored == 0)
    allowed = {len(free), len(free) + ENTRIES_PER_BITMAP - len(stored)}
    if int(entry["nr_free"]) not in allowed:
        expected = " or ".join(map(str, sorted(allowed)))
        census.findings.add(Severity.DAMAGE, FindingKind.NR_FREE, where, expected, int(entry["nr_free"]))
    if len(free) and int(free[0]) < int(entry["none_free_before"]):
        expected = f"at most {int(free[0])}"
        found = int(entry["none_free_before"])
        census.findings.add(Severity.DAMAGE, FindingKind.NONE_FREE_BEFORE, where, expected, found)


def _compare_overflow(census: Census, content: SpaceMapContent, counts: Counts) -> None:
    expected_keys = np.flatnonzero(counts >= OVERFLOW).astype(np.uint64)
    expected = counts[expected_keys.astype(np.int64)]
    keys, found = content.overflow_keys, content.overflow_counts
    missing, extra = ~np.isin(expected_keys, keys), ~np.isin(keys, expected_keys)
    rows = [(int(k), f"count {int(c)}", "no entry") for k, c in _first(expected_keys[missing], expected[missing])]
    rows += [(int(k), "no entry", f"count {int(c)}") for k, c in _first(keys[extra], found[extra])]
    wrong_count = 0
    if not missing.any() and not extra.any():
        wrong = expected != found
        wrong_count = int(wrong.sum())
        both = zip(expected_keys[wrong], expected[wrong], found[wrong], strict=True)
        rows += [(int(k), f"count {int(e)}", f"count {int(f)}") for k, e, f in list(both)[:1]]
    where = f"{content.what} space map, overflow tree, block"
    for key, should, is_ in rows:
        census.findings.add(Severity.DAMAGE, FindingKind.OVERFLOW, f"{where} {key}", should, is_)
    more = int(missing.sum()) + int(extra.sum()) + wrong_count - len(rows)
    census.findings.count_only(Severity.DAMAGE, FindingKind.OVERFLOW, more)


def _first(keys: Words, counts: Counts) -> Iterator[tuple[int, int]]:
    return zip(keys[:5].tolist(), counts[:5].tolist(), strict=True)
