"""Block status replies: merging, cutting, limits (E1 to E3), bytes, and exports' values."""

from __future__ import annotations

import errno
import itertools

import pytest

from replicator.nbd import protocol as p
from replicator.nbd.export import Context, Export, preferred_size
from replicator.nbd.extents import merge_extents, pack_block_status
from replicator.nbd.failures import errno_of_error, error_of_errno, reason_of_error


@pytest.mark.parametrize(
    ("runs", "length", "most", "expected"),
    [
        ([(10, 0)], 10, 9, [(10, 0)]),
        ([(10, 0)], 4, 9, [(4, 0)]),
        ([(4, 1), (4, 1), (4, 0)], 12, 9, [(8, 1), (4, 0)]),
        ([(4, 1), (0, 5), (4, 1)], 8, 9, [(8, 1)]),
        ([(4, 1), (4, 1), (4, 0), (4, 1)], 16, 1, [(8, 1)]),
        ([(4, 1), (4, 0), (4, 1)], 12, 2, [(4, 1), (4, 0)]),
        ([(4, 1), (4, 0)], 4, 2, [(4, 1)]),
        ([(4, 1)], 100, 2, [(4, 1)]),
    ],
)
def test_runs_to_extents(runs: list[tuple[int, int]], length: int, most: int, expected: list[tuple[int, int]]) -> None:
    assert merge_extents(runs, length, most) == expected


def test_an_endless_source_is_taken_as_far_as_needed() -> None:
    """E3: the limit of descriptors, and one more run to know where the last ends."""
    source = iter((1, number % 2) for number in itertools.count())
    assert len(merge_extents(source, 1 << 32)) == p.MAX_EXTENTS
    assert next(source) == (1, (p.MAX_EXTENTS + 1) % 2)


def test_two_contexts_are_two_chunks_the_last_with_done() -> None:
    packed = pack_block_status(7, [(1, [(4096, 3), (4096, 0)]), (2, [(9000, 1)])], 8192, one=False)
    assert packed == bytes.fromhex(
        "668e33ef 0000 0005 0000000000000007 00000014 00000001 00001000 00000003 00001000 00000000"
        "668e33ef 0001 0005 0000000000000007 0000000c 00000002 00002000 00000001"
    )


def test_req_one_is_one_descriptor() -> None:
    packed = pack_block_status(7, [(1, [(4096, 3), (4096, 0)])], 8192, one=True)
    assert packed == bytes.fromhex("668e33ef 0001 0005 0000000000000007 0000000c 00000001 00001000 00000003")


@pytest.mark.parametrize(
    ("block", "preferred"), [(65536, 65536), (3 * 65536, 65536), (1 << 30, 32 << 20), (4 << 20, 4 << 20), (1, 512)]
)
def test_preferred_sizes_are_powers_of_two(block: int, preferred: int) -> None:
    assert preferred_size(block) == preferred


def test_flags_of_exports() -> None:
    """Bits of the specification: 0 has flags, 1 read-only, 2 flush, 3 FUA, 5 trim, 6 zeroes, 7 DF, 8 multi, 10, 11."""
    assert Export("x", 1).transmission_flags(structured=True) == 0b1101_1110_1101
    assert Export("x", 1).transmission_flags(structured=False) == 0b1101_0110_1101
    assert Export("x", 1, read_only=True).transmission_flags(structured=True) == 0b0101_1000_1111


def test_contexts_name_their_snapshot() -> None:
    export = Export("x", 1, snapshots=("monday", "a:b"))
    assert export.contexts == ("base:allocation", "replicator:changed:monday", "replicator:changed:a:b")
    assert [Context(1, name).snapshot for name in export.contexts] == [None, "monday", "a:b"]


def test_errors_and_errnos() -> None:
    """What the protocol has a word for keeps its meaning; the rest is EIO."""
    assert error_of_errno(errno.EROFS) == p.EPERM and error_of_errno(errno.EDQUOT) == p.ENOSPC
    assert error_of_errno(errno.ETIMEDOUT) == p.EIO and errno_of_error(4242) == errno.EIO
    for error in (p.EPERM, p.EIO, p.ENOMEM, p.EINVAL, p.ENOSPC, p.EOVERFLOW, p.ENOTSUP, p.ESHUTDOWN):
        assert error_of_errno(errno_of_error(error)) == error
    assert reason_of_error(p.ENOSPC, "pool full") == "No space left on device (pool full)"
