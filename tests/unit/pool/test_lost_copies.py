"""Lost, older, busy and damaged copies of mirrored metadata: what repair reads, who takes them, what is advised."""

from __future__ import annotations

import errno
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import (
    ConflictError,
    DamageError,
    DeviceError,
    FormatError,
    NotFoundError,
    ReplicatorError,
    UsageError,
)
from replicator.pdata.mirror import MirrorState, Side
from replicator.pool import volumes
from replicator.pool.locks import hold_files
from replicator.pool.metadata_device import MIRROR, files_of, is_mirrored, open_metadata, says_gone
from replicator.pool.mirror_state import STATE, load_state, save_state
from replicator.pool.mirroring import add_mirror
from replicator.pool.opening import own_pool
from replicator.pool.repairing import PoolRepair, Wish, repair_pool
from replicator.thin.superblock import read_superblock
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.mirrored_pool import BLOCK, RUINS, contents, make_mirrored, write_some
from tests.support.pool_owner import make_pool
from tests.unit.pool.test_repairing import put_in_place


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_mirrored(tmp_path / "pool", tmp_path / "second")
    return tmp_path / "pool"


def put_block(copy: Path, number: int, content: bytes) -> None:
    with copy.open("r+b") as file:
        file.seek(number * METADATA_BLOCK_BYTES)
        file.write(content)


def ruin_block(copy: Path, number: int) -> None:
    put_block(copy, number, bytes(METADATA_BLOCK_BYTES))


def details_root(path: Path) -> int:
    with closing(open_metadata(path, settled=True)) as device:
        return read_superblock(device).device_details_root


def lose_first(path: Path, away: Path) -> dict[str, bytes]:
    """The first copy is away for one opening, in which something is written: what the pool holds then."""
    (path / "metadata").rename(away)
    with own_pool(path) as pool:
        write_some(pool, 20)
    now = contents(path)
    shutil.move(away, path / "metadata")
    return now


def lost_of(path: Path) -> Side | None:
    state = load_state(path)
    assert state is not None
    return state.lost


def repaired(path: Path, block_bytes: int | None = None) -> PoolRepair:
    found = repair_pool(Wish(path, path.parent / "new", block_bytes=block_bytes))
    put_in_place(found)
    return found


# -- repair ------------------------------------------------------------------------------------------------------------


def test_repair_reads_the_copy_that_holds_what_was_answered(path: Path, tmp_path: Path) -> None:
    """The first is lost; the second lacks its superblock alone: the first says how large a data block is."""
    now = lose_first(path, tmp_path / "away")
    older = (path / "metadata").read_bytes()
    ruin_block(tmp_path / "second", 0)
    damaged = (tmp_path / "second").read_bytes()
    found = repaired(path)
    assert found.read_from == (path / MIRROR,) and found.whole and not found.is_older and "was lost on" in found.note
    assert contents(path) == now and not is_mirrored(path)
    assert (path / "metadata.damaged").read_bytes() == older
    assert (path / f"{MIRROR}.damaged").read_bytes() == damaged and (path / f"{STATE}.damaged").exists()


def test_repair_says_that_it_has_the_older_copy_only(path: Path, tmp_path: Path) -> None:
    lose_first(path, tmp_path / "away")
    RUINS["unlinked"](tmp_path / "second")
    found = repair_pool(Wish(path, tmp_path / "new"))
    assert found.read_from == (path / "metadata",) and found.is_older and not found.whole
    assert "lacks what was written since" in found.note and found.intact


def test_repair_puts_metadata_in_the_place_of_a_link_that_leads_nowhere(path: Path, tmp_path: Path) -> None:
    expected, root = contents(path), details_root(path)
    (path / "metadata").rename(tmp_path / "first")
    (path / "metadata").symlink_to(tmp_path / "first")
    (tmp_path / "first").unlink()
    ruin_block(tmp_path / "second", root)
    assert repaired(path).read_from == (path / MIRROR,)
    assert contents(path) == expected and (path / "metadata.damaged").is_symlink()


def test_repair_reads_the_second_where_the_first_is_gone_and_no_superblock_is_left(path: Path, tmp_path: Path) -> None:
    expected = contents(path)
    (path / "metadata").unlink()
    ruin_block(tmp_path / "second", 0)
    found = repaired(path, BLOCK)
    assert found.read_from == (path / MIRROR,) and contents(path) == expected


def test_repair_reads_the_younger_of_two_that_contradict_each_other(path: Path, tmp_path: Path) -> None:
    older = (path / "metadata").read_bytes()
    with own_pool(path) as pool:
        volumes.create_snapshot(pool, "v", "s2")
    expected = contents(path)
    (path / "metadata").write_bytes(older)
    (path / STATE).write_text("nonsense")
    found = repaired(path)
    assert found.read_from == (path / MIRROR,) and "a mirror's state" in found.note
    assert contents(path) == expected and (path / "metadata.damaged").read_bytes() == older


def test_a_second_repair_keeps_what_the_first_one_kept(path: Path, tmp_path: Path) -> None:
    first = (path / "metadata").read_bytes()
    repaired(path)
    (tmp_path / "new").unlink()
    repaired(path)
    assert (path / "metadata.damaged").read_bytes() == first and (path / "metadata.damaged.2").exists()


# -- advice ------------------------------------------------------------------------------------------------------------


def test_what_is_advised_to_go_on_with_the_older_copy_keeps_the_newer_one(path: Path, tmp_path: Path) -> None:
    lose_first(path, tmp_path / "away")
    ruin_block(tmp_path / "second", 0)
    newer = (tmp_path / "second").read_bytes()
    with pytest.raises(DamageError, match="was lost on") as caught:
        own_pool(path)
    mend = caught.value.mend
    assert mend is not None and f"mv {path / MIRROR} elsewhere, then rm {path / STATE}" in mend
    (path / MIRROR).rename(tmp_path / "elsewhere")
    (path / STATE).unlink()
    own_pool(path).close()
    assert (tmp_path / "second").read_bytes() == newer


def test_nothing_is_to_be_moved_that_is_not_there(path: Path, tmp_path: Path) -> None:
    lose_first(path, tmp_path / "away")
    (path / MIRROR).unlink()
    with pytest.raises(DamageError, match="was lost on") as caught:
        own_pool(path)
    assert caught.value.mend is not None and "mv " not in caught.value.mend


def test_a_state_that_is_none_is_not_to_be_removed_beside_both_copies(path: Path) -> None:
    (path / STATE).write_text("nonsense")
    with pytest.raises(FormatError) as caught:
        own_pool(path)
    assert caught.value.mend is not None and "mv the other one elsewhere" in caught.value.mend


# -- who takes a copy --------------------------------------------------------------------------------------------------


def test_a_lost_copy_that_another_directory_has_taken_is_left_alone(path: Path, tmp_path: Path) -> None:
    """P9: the directory was copied, with its link to the copy, while that was away."""
    (tmp_path / "second").rename(tmp_path / "away")
    own_pool(path).close()
    shutil.copytree(path, tmp_path / "other", symlinks=True)
    (tmp_path / "away").rename(tmp_path / "second")
    with own_pool(path) as pool:
        write_some(pool, 30)
        theirs = (tmp_path / "second").read_bytes()
        with own_pool(tmp_path / "other") as copied:
            write_some(copied, 31)
        assert lost_of(tmp_path / "other") is Side.SECOND and lost_of(path) is None
        assert (tmp_path / "second").read_bytes() == theirs


def test_a_copy_that_is_behind_is_held_too(path: Path, tmp_path: Path) -> None:
    older = (tmp_path / "second").read_bytes()[:METADATA_BLOCK_BYTES]
    with own_pool(path) as pool:
        volumes.create_snapshot(pool, "v", "s2")
    put_block(tmp_path / "second", 0, older)
    with closing(open_metadata(path, read_only=False, exclusive=True)) as metadata:
        assert len(files_of(metadata)) == 1
        with pytest.raises(ConflictError, match="held by another pool directory"):
            own_pool(_twin(path, tmp_path))


def _twin(path: Path, tmp_path: Path) -> Path:
    """A copy of the directory."""
    shutil.copytree(path, tmp_path / "other", symlinks=True)
    return tmp_path / "other"


def test_nothing_is_copied_onto_what_another_directory_has_open(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    theirs = _twin(tmp_path / "pool", tmp_path) / "metadata"
    with own_pool(theirs.parent) as pool:
        volumes.create_volume(pool, "v", 1 << 20)
        before = theirs.read_bytes()
        with pytest.raises(ConflictError, match="held by another pool directory"):
            add_mirror(tmp_path / "pool", theirs)
        assert theirs.read_bytes() == before
    assert not is_mirrored(tmp_path / "pool")


def test_a_new_copy_is_held_while_it_is_made(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    told = []

    def progress(done: int) -> None:
        with FileDevice(tmp_path / "second") as rival, pytest.raises(ConflictError, match="held"):
            hold_files([rival])
        told.append(done)

    add_mirror(tmp_path / "pool", tmp_path / "second", progress)
    assert told


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (NotFoundError("it isn't there"), True),
        (UsageError("it is a directory"), True),
        (DeviceError("opening", 0, errno.ENXIO, "no such device"), True),
        (DeviceError("opening", 0, errno.EACCES, "permission denied"), False),
        (DeviceError("opening", 0, errno.EMFILE, "too many open files"), False),
        (ConflictError("it is in use"), False),
    ],
    ids=lambda each: getattr(each, "message", ""),
)
def test_only_what_is_no_more_is_given_up(error: ReplicatorError, gone: bool) -> None:
    assert says_gone(error) is gone


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "in use"])
def test_a_lost_copy_that_may_not_be_opened_keeps_nobody_out(path: Path, tmp_path: Path, lost: bool) -> None:
    """What nobody may write, root included: EACCES, as a device that is in use is EBUSY."""
    RUINS["unlinked"](tmp_path / "second")
    if lost:
        save_state(path, MirrorState(Side.SECOND, 1, "gone"))
    (path / MIRROR).unlink()
    (path / MIRROR).symlink_to("/proc/sys/kernel/osrelease")
    if not lost:
        with pytest.raises(DeviceError, match="opening"):
            own_pool(path)
        return
    with own_pool(path) as pool:
        write_some(pool, 40)
    assert lost_of(path) is Side.SECOND
