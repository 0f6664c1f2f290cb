"""pool/sparse: holes are found and made; a file gets its name when it is whole, or not at all."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import NoSpaceError, NotFoundError
from replicator.pool.sparse import SparseFile, data_extents, nonzero_blocks

MIB = 1 << 20
Piece = tuple[int, bytes]


@pytest.mark.parametrize(
    ("writes", "size", "expected"),
    [
        ([], MIB, []),
        ([(0, 1)], 1, [(0, 1)]),
        ([(100_000, 1)], MIB, [(65536, 131072)]),
        ([(0, 10), (200_000, 10)], 200_010, [(0, 65536), (196_608, 200_010)]),
        ([(0, 65536), (65536, 65536)], MIB, [(0, 131072)]),
    ],
)
def test_extents_are_whole_units_around_the_data(
    tmp_path: Path, writes: list[tuple[int, int]], size: int, expected: list[tuple[int, int]]
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for offset, length in writes:
            file.seek(offset)
            file.write(b"x" * length)
        file.truncate(size)
    with path.open("rb") as file:
        assert list(data_extents(file.fileno(), size, 65536)) == expected


def test_a_file_that_doesnt_tell_is_all_data(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        assert list(data_extents(reading, 100, 64)) == [(0, 100)]
    finally:
        os.close(reading)
        os.close(writing)


def test_one_byte_makes_a_block() -> None:
    data = bytearray(4 * 4096)
    data[4096 + 4095] = 1
    assert nonzero_blocks(memoryview(data), 4096).tolist() == [False, True, False, False]


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[Piece], int]:
    """Ascending pieces with gaps, and a size at or behind their end."""
    at, made = 0, []
    for _ in range(draw(st.integers(0, 5))):
        at += draw(st.sampled_from([0, 1, 4095, 4096, 10_000]))
        length = draw(st.sampled_from([1, 4095, 4096, 4097, 20_000]))
        fill = draw(st.sampled_from([b"\0", b"a"]))
        made.append((at, fill * (length // 2) + b"\0" * (length - length // 2)))
        at += length
    return made, at + draw(st.sampled_from([0, 1, 5000]))


@given(case=pieces(), how=st.sampled_from(["path", "file", "pipe"]))
def test_what_comes_out_is_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[Piece], int], how: str
) -> None:
    (parts, size), folder = case, tmp_path_factory.mktemp("sparse")
    expected = bytearray(size)
    for offset, data in parts:
        expected[offset : offset + len(data)] = data
    target = folder / "out"
    if how == "pipe":
        assert through_a_pipe(parts, size) == bytes(expected)
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT) if how == "file" else None
    with closing(SparseFile(target if fd is None else fd)) as out:
        for offset, data in parts:
            out.write(memoryview(data), offset)
        out.finish(size)
    if fd is not None:
        os.close(fd)
    assert target.read_bytes() == bytes(expected)
    assert [each.name for each in folder.iterdir()] == ["out"]


def through_a_pipe(parts: list[Piece], size: int) -> bytes:
    """Both ends in one process: what is written here is less than a pipe holds when it is made large."""
    import fcntl

    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, MIB)
    try:
        with closing(SparseFile(writing)) as out:
            for offset, data in parts:
                out.write(memoryview(data), offset)
            out.finish(size)
        os.close(writing)
        writing = -1
        with os.fdopen(os.dup(reading), "rb") as file:
            return file.read()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def test_unfinished_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with closing(SparseFile(tmp_path / "out")) as out:
        out.write(memoryview(b"new"), 0)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_no_space_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with closing(SparseFile(tmp_path / "out")) as out, pytest.raises(NoSpaceError):
            out.write(memoryview(b"x" * (2 * MIB)), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        SparseFile(tmp_path / "no" / "out")
