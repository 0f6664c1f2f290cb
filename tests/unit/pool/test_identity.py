"""Parts of two pools, or of two times of one, are never used together, as far as they can be told apart (S3-22)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.errors import DamageError
from replicator.pool.inspection import check_pool
from replicator.pool.opening import own_pool
from replicator.pool.reading import read_pool
from replicator.pool.volumes import create_volume
from tests.support.pool_owner import make_pool
from tests.support.replaced import copied, replace_part

MIB = 1 << 20
PARTS = ("metadata", "data", "catalog.db")


def fill(path: Path, name: str) -> None:
    """One volume more: two switches."""
    with own_pool(path) as pool:
        create_volume(pool, name, MIB)
        create_volume(pool, f"{name}2", MIB)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    make_pool(tmp_path / "pool", 16 * MIB)
    fill(tmp_path / "pool", "a")
    probe = tmp_path / "pool" / "data"
    os.setxattr(probe, "user.probe", b"1")  # the marks need attributes, and the machine that tests has them
    yield tmp_path / "pool"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_another_pool_is_refused_with_both_ids(path: Path, tmp_path: Path, part: str) -> None:
    other = tmp_path / "other"
    ids = {str(make_pool(other, 16 * MIB).uuid)}
    fill(other, "a")
    with own_pool(path) as pool:
        ids.add(str(pool.status().uuid))
    replace_part(path, other, part)
    for attempt in (own_pool, read_pool):
        with pytest.raises(DamageError) as refused:
            attempt(path)
        assert all(each in refused.value.message for each in ids) and refused.value.mend
    assert not check_pool(path).report.clean


@pytest.mark.parametrize("parts", [(part,) for part in PARTS] + [("metadata", "catalog.db"), ("data", "catalog.db")])
def test_an_older_copy_of_a_part_is_refused(path: Path, tmp_path: Path, parts: tuple[str, ...]) -> None:
    older = copied(path, tmp_path / "older")
    fill(path, "b")
    for part in parts:
        replace_part(path, older, part)
    before = {part: (path / part).read_bytes() for part in PARTS[:2]}
    with pytest.raises(DamageError) as refused:
        own_pool(path)
    assert refused.value.mend and not check_pool(path).report.clean
    with pytest.raises(DamageError):
        read_pool(path)
    assert {part: (path / part).read_bytes() for part in PARTS[:2]} == before


def test_a_whole_older_copy_is_a_pool(path: Path, tmp_path: Path) -> None:
    older = copied(path, tmp_path / "older")
    fill(path, "b")
    with own_pool(older) as pool:
        assert [each.name for each in pool.view().volumes] == ["a", "a2"]


def test_a_copy_without_attributes_is_a_pool(path: Path, tmp_path: Path) -> None:
    """Most tools drop them: then nothing is said of its age."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in PARTS:
        shutil.copyfile(path / part, bare / part)
    fill(bare, "b")
    with own_pool(bare) as pool:
        assert [each.name for each in pool.view().volumes] == ["a", "a2", "b", "b2"]


def test_metadata_one_switch_older_is_refused_in_the_same_boot(path: Path, tmp_path: Path) -> None:
    """Nothing but `dirty` tells it from a crash between catalogue and superblock."""
    older = copied(path, tmp_path / "older")
    with own_pool(path) as pool:
        create_volume(pool, "b", MIB)
    os.removexattr(path / "data", "user.replicator.transaction")
    replace_part(path, older, "metadata")
    with pytest.raises(DamageError, match="the catalogue knows transaction"):
        own_pool(path)


def test_marks_grow_with_each_opening(path: Path) -> None:
    def number(name: str, part: str) -> int:
        return int(os.getxattr(path / part, f"user.replicator.{name}"))

    first = number("opened", "data")
    fill(path, "b")
    assert number("opened", "data") == number("opened", "metadata") == first + 1
    with own_pool(path) as pool:
        assert number("transaction", "data") == pool.view().at_id


@pytest.mark.parametrize("text", [b"", b"-1", b"x" * 60, b"9" * 40, b"\xff\xfe"])
def test_marks_that_are_no_numbers_say_nothing(path: Path, text: bytes) -> None:
    os.setxattr(path / "data", "user.replicator.opened", text)
    own_pool(path).close()


def test_a_mark_that_finds_no_room_keeps_nobody_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: the metadata's number is never ahead of the data's, which may be on a file system of its own."""
    really, data = os.setxattr, (path / "data").stat().st_ino

    def full(file: int, name: str, value: bytes) -> None:
        if os.fstat(file).st_ino == data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(file, name, value)

    with monkeypatch.context() as patched:
        patched.setattr(os, "setxattr", full)
        fill(path, "b")
    fill(path, "c")
    opened = [os.getxattr(path / part, "user.replicator.opened") for part in ("data", "metadata")]
    assert opened[0] == opened[1]
