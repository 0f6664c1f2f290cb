"""One node of a B-tree: header, keys, values; many nodes at once as rows of a numpy array.

Read by pdata/tree (looking up, walking) and written by pdata/update. Layout of one 4 KiB node:

    offset          size            field
    0               4               csum (pdata/block)
    4               4               flags: 1 = internal, 2 = leaf
    8               8               blocknr
    16              4               nr_entries
    20              4               max_entries
    24              4               value_size
    28              4               padding
    32              8 * max         keys, u64, strictly ascending; only nr_entries are valid
    32 + 8 * max    value_size each values; in an internal node u64 child blocks

    max_entries = 3 * floor(floor((4096 - 32) / (8 + value_size)) / 3)

Little-endian. Source: Linux dm-btree-internal.h.

Invariants
  N1  An internal node's values are child blocks, value_size 8, max 252.
  N2  A node other than a root has at least max/3 entries (a reader does not insist; a writer keeps it).
  N3  Unused slots may hold anything: a reader never looks at them; a writer zeroes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.block import WORDS_PER_BLOCK, BlockKind, Words, seal_many
from replicator.units import METADATA_BLOCK_BYTES

INTERNAL = 1
LEAF = 2
_HEADER_WORDS = 4
_CHILD = np.dtype("<u8")
_MASK32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)


def max_entries(value_size: int) -> int:
    """How many entries a node with values of `value_size` bytes holds."""
    return 3 * ((METADATA_BLOCK_BYTES - 32) // (8 + value_size) // 3)


@dataclass(frozen=True, slots=True)
class TreeKind:
    """One of the five trees of a pool: its name in messages, and the dtype of its leaf values."""

    name: str
    dtype: np.dtype[Any]

    @property
    def value_size(self) -> int:
        return self.dtype.itemsize

    @property
    def leaf_max(self) -> int:
        return max_entries(self.dtype.itemsize)


DETAILS_DTYPE = np.dtype(
    [("mapped_blocks", "<u8"), ("transaction_id", "<u8"), ("creation_time", "<u4"), ("snapshotted_time", "<u4")]
)
INDEX_ENTRY_DTYPE = np.dtype([("block", "<u8"), ("nr_free", "<u4"), ("none_free_before", "<u4")])

TOP_LEVEL = TreeKind("top-level mapping tree", np.dtype("<u8"))
MAPPING = TreeKind("mapping tree", np.dtype("<u8"))
DETAILS = TreeKind("device details tree", DETAILS_DTYPE)
BITMAP_INDEX = TreeKind("bitmap index tree", INDEX_ENTRY_DTYPE)
REF_COUNTS = TreeKind("reference count tree", np.dtype("<u4"))
INTERNAL_MAX = max_entries(8)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Decoded nodes of one level: `count[i]` of `keys[i]` and `values[i]` are valid, the rest is noise.

    `blocks` u64 (n,), `leaf` says which kind they are (a level is all of one), `count` int64 (n,),
    `keys` u64 (n, max), `values` (n, max) of the tree's dtype in leaves, u64 children in internal nodes;
    `words` the rows (n, 512) that they were decoded from.
    """

    blocks: Words
    leaf: bool
    count: npt.NDArray[np.int64]
    keys: Words
    values: npt.NDArray[Any]
    words: Words

    def mask(self) -> npt.NDArray[np.bool_]:
        """True where an entry is valid, shape (n, max)."""
        return np.arange(self.keys.shape[1]) < self.count[:, None]

    def flat(self) -> tuple[Words, npt.NDArray[Any]]:
        """All valid keys and values, in order, one behind the other."""
        mask = self.mask()
        return self.keys[mask], self.values[mask]


def _fail(where: str, number: int, expected: str, found: str) -> FormatError:
    return FormatError(f"{where}, metadata block {number}", expected, found)


def _check_headers(words: Words, blocks: Words, leaf: bool, kind: TreeKind, where: str) -> npt.NDArray[np.int64]:
    size, limit = (kind.value_size, kind.leaf_max) if leaf else (8, INTERNAL_MAX)
    count = words[:, 2] & _MASK32
    for field, value, expected in (
        ("max_entries", words[:, 2] >> _SHIFT32, limit),
        ("value_size", words[:, 3] & _MASK32, size),
    ):
        wrong = np.flatnonzero(value != expected)
        if wrong.size:
            row = int(wrong[0])
            raise _fail(where, int(blocks[row]), f"{field} {expected} in the {kind.name}", str(int(value[row])))
    wrong = np.flatnonzero(count > limit)
    if wrong.size:
        row = int(wrong[0])
        raise _fail(where, int(blocks[row]), f"at most {limit} entries", str(int(count[row])))
    if not leaf and not count.all():
        row = int(np.flatnonzero(count == 0)[0])
        raise _fail(where, int(blocks[row]), "an internal node with entries", "an empty one")
    return count.astype(np.int64)


def is_leaf_level(words: Words, blocks: Words, where: str) -> bool:
    """Whether the nodes are leaves; FormatError unless all are of one kind (equal depth)."""
    flags = (words[:, 0] >> _SHIFT32) & _MASK32
    first = int(flags[0])
    wrong = np.flatnonzero((flags != first) | ((flags != LEAF) & (flags != INTERNAL)))
    if wrong.size:
        row = int(wrong[0])
        expected = "a leaf" if first == LEAF else "an internal node"
        raise _fail(where, int(blocks[row]), f"{expected}, as its neighbours are", f"flags {int(flags[row])}")
    return first == LEAF


def leaf_rows(words: Words) -> npt.NDArray[np.bool_]:
    """Which of the rows say that they are leaves (`decode` checks what they say)."""
    found: npt.NDArray[np.bool_] = (words[:, 0] >> _SHIFT32) & _MASK32 == LEAF
    return found


def decode(words: Words, blocks: Words, kind: TreeKind, where: str) -> Nodes:
    """Decode rows of `words` (n, 512), already verified, as nodes of one level of a `kind` tree.

    FormatError for mixed depths, wrong sizes, too many entries, keys not ascending.
    """
    if len(words) == 1 and (one := _decode_one(words, blocks, kind)) is not None:
        return one
    leaf = is_leaf_level(words, blocks, where)
    count = _check_headers(words, blocks, leaf, kind, where)
    limit = kind.leaf_max if leaf else INTERNAL_MAX
    keys = words[:, _HEADER_WORDS : _HEADER_WORDS + limit]
    in_use = np.arange(1, limit) < count[:, None]
    wrong = np.flatnonzero(((keys[:, 1:] <= keys[:, :-1]) & in_use).any(axis=1))
    if wrong.size:
        raise _fail(where, int(blocks[int(wrong[0])]), "ascending keys", "keys out of order")
    values = _values(words, limit, kind.dtype if leaf else _CHILD)
    return Nodes(blocks, leaf, count, keys, values, words)


def _decode_one(words: Words, blocks: Words, kind: TreeKind) -> Nodes | None:
    """The one node of `words`, without what arrays of one cost; None if anything is wrong: `decode` says what."""
    head = words[0, :_HEADER_WORDS].tolist()
    flags, count = head[0] >> 32, head[2] & 0xFFFFFFFF
    leaf = flags == LEAF
    dtype, limit = (kind.dtype, kind.leaf_max) if leaf else (_CHILD, INTERNAL_MAX)
    if not (leaf or (flags == INTERNAL and count)) or count > limit:
        return None
    if head[2] >> 32 != limit or head[3] & 0xFFFFFFFF != dtype.itemsize:
        return None
    keys = words[:, _HEADER_WORDS : _HEADER_WORDS + limit]
    valid = keys[0, :count]
    if not (valid[1:] > valid[:-1]).all():
        return None
    return Nodes(blocks, leaf, np.array([count], dtype=np.int64), keys, _values(words, limit, dtype), words)


def _values(words: Words, limit: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    start = 32 + 8 * limit
    raw = words.view(np.uint8)[:, start : start + limit * dtype.itemsize]
    if dtype.itemsize % 8 == 0 and dtype.names is None:
        return words[:, start // 8 : start // 8 + limit]
    return np.ascontiguousarray(raw).view(dtype)


def encode(
    blocks: Words, counts: npt.NDArray[np.int64], keys: Words, values: npt.NDArray[Any], leaf: bool, kind: TreeKind
) -> Words:
    """Nodes as sealed rows (n, 512): node i gets the next `counts[i]` of the flat `keys` and `values`."""
    dtype, limit = (kind.dtype, kind.leaf_max) if leaf else (np.dtype("<u8"), INTERNAL_MAX)
    words = np.zeros((len(blocks), WORDS_PER_BLOCK), dtype=np.uint64)
    words[:, 0] = (LEAF if leaf else INTERNAL) << 32
    words[:, 2] = counts.astype(np.uint64) | np.uint64(limit << 32)
    words[:, 3] = dtype.itemsize
    mask = np.arange(limit) < counts[:, None]
    words[:, _HEADER_WORDS : _HEADER_WORDS + limit][mask] = keys
    start = 32 + 8 * limit
    if dtype == np.dtype("<u8"):
        words[:, start // 8 : start // 8 + limit][mask] = values
    else:
        slots = np.zeros((len(blocks), limit), dtype=dtype)
        slots[mask] = values
        raw = slots.view(np.uint8).reshape(len(blocks), limit * dtype.itemsize)
        words.view(np.uint8)[:, start : start + limit * dtype.itemsize] = raw
    seal_many(words, BlockKind.NODE, blocks)
    return words


def patch(
    nodes: Nodes,
    kind: TreeKind,
    blocks: Words,
    owner: npt.NDArray[np.int64],
    slot: npt.NDArray[np.int64],
    keys: Words,
    values: npt.NDArray[Any],
) -> Words:
    """Sealed copies of `nodes` for `blocks`, with entry `slot[i]` of node `owner[i]` replaced by keys[i], values[i]."""
    dtype, limit = (kind.dtype, kind.leaf_max) if nodes.leaf else (np.dtype("<u8"), INTERNAL_MAX)
    words = nodes.words.copy()
    words[owner, _HEADER_WORDS + slot] = keys
    start = 32 + 8 * limit
    if dtype == np.dtype("<u8"):
        words[owner, start // 8 + slot] = values
    else:
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(owner), dtype.itemsize)
        places = start + slot[:, None] * dtype.itemsize + np.arange(dtype.itemsize)
        words.view(np.uint8)[owner[:, None], places] = raw
    seal_many(words, BlockKind.NODE, blocks)
    return words
