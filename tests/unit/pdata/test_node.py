"""One node of a B-tree: its bytes, and what is refused of it."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from replicator.errors import FormatError
from replicator.pdata.block import BlockKind, Words, seal_many
from replicator.pdata.node import (
    BITMAP_INDEX,
    DETAILS,
    INTERNAL_MAX,
    MAPPING,
    REF_COUNTS,
    TreeKind,
    decode,
    encode,
    leaf_rows,
    max_entries,
    patch,
)

AT = np.array([5], dtype=np.uint64)


def node(kind: TreeKind = MAPPING, keys: tuple[int, ...] = (1, 5, 9), *, leaf: bool = True) -> Words:
    values = np.zeros(len(keys), dtype=kind.dtype if leaf else np.dtype("<u8"))
    if not values.dtype.names:
        values[:] = [key + 100 for key in keys]
    return encode(AT, np.array([len(keys)]), np.array(keys, dtype=np.uint64), values, leaf, kind)


@pytest.mark.parametrize(("value_size", "entries"), [(8, 252), (4, 336), (16, 168), (24, 126)])
def test_a_node_holds_a_multiple_of_three(value_size: int, entries: int) -> None:
    """The kernel's calc_max_entries."""
    assert max_entries(value_size) == entries and INTERNAL_MAX == 252


def test_the_bytes_of_a_leaf() -> None:
    raw = node().tobytes()
    assert struct.unpack_from("<IQIII", raw, 4) == (2, 5, 3, 252, 8)
    assert struct.unpack_from("<4Q", raw, 32) == (1, 5, 9, 0)
    assert struct.unpack_from("<4Q", raw, 32 + 8 * 252) == (101, 105, 109, 0)
    assert struct.unpack_from("<I", node(leaf=False).tobytes(), 4) == (1,)
    assert leaf_rows(np.concatenate((node(), node(leaf=False)))).tolist() == [True, False]


@pytest.mark.parametrize("kind", [MAPPING, REF_COUNTS, BITMAP_INDEX, DETAILS])
def test_decoding_gives_what_was_encoded(kind: TreeKind) -> None:
    found = decode(node(kind), AT, kind, "disk")
    assert found.leaf and found.flat()[0].tolist() == [1, 5, 9] and found.values.dtype == kind.dtype
    if not kind.dtype.names:
        assert found.flat()[1].tolist() == [101, 105, 109]


def test_a_patched_copy_has_a_home_of_its_own() -> None:
    old = decode(node(), AT, MAPPING, "disk")
    first, second = np.array([0]), np.array([1])
    new = patch(old, MAPPING, AT + np.uint64(1), first, second, AT, np.array([7], dtype=np.uint64))
    found = decode(new, AT + np.uint64(1), MAPPING, "disk")
    assert found.flat()[1].tolist() == [101, 7, 109] and old.flat()[1].tolist() == [101, 105, 109]
    assert int(new[0, 1]) == 6


@pytest.mark.parametrize(
    ("offset", "form", "value", "expected"),
    [
        (4, "<I", 3, "a leaf, as its neighbours|an internal node"),
        (16, "<I", 253, "at most 252 entries"),
        (20, "<I", 249, "max_entries 252"),
        (24, "<I", 4, "value_size 8"),
        (40, "<Q", 1, "ascending keys"),
        (48, "<Q", 5, "ascending keys"),
    ],
)
def test_what_isnt_a_node_of_that_tree_is_refused(offset: int, form: str, value: int, expected: str) -> None:
    raw = bytearray(node().tobytes())
    struct.pack_into(form, raw, offset, value)
    words = np.frombuffer(raw, dtype=np.uint64).reshape(1, 512).copy()
    seal_many(words, BlockKind.NODE, AT)
    with pytest.raises(FormatError, match=expected) as refused:
        decode(words, AT, MAPPING, "disk")
    assert "metadata block 5" in refused.value.where


def test_an_inner_node_without_children_and_a_level_of_both_kinds_are_refused() -> None:
    with pytest.raises(FormatError, match="an empty one"):
        decode(node(keys=(), leaf=False), AT, MAPPING, "disk")
    with pytest.raises(FormatError, match="as its neighbours are"):
        decode(np.concatenate((node(), node(leaf=False))), np.repeat(AT, 2), MAPPING, "disk")
    assert decode(node(keys=()), AT, MAPPING, "disk").flat()[0].size == 0


def test_unused_slots_may_hold_anything() -> None:
    words = node().copy()
    words[0, 4 + 3 : 4 + 252] = 3  # N3
    seal_many(words, BlockKind.NODE, AT)
    assert decode(words, AT, MAPPING, "disk").flat()[0].tolist() == [1, 5, 9]
