"""pool/mirroring, metadata_device, mirror_choice, mirror_state and mirror_check, over real files."""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, DamageError, FormatError, NotFoundError, UsageError
from replicator.pdata.block import BlockKind, seal
from replicator.pdata.mirror import MirroredDevice, MirrorState, Side
from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.inspection import check_pool, inspected
from replicator.pool.locks import OwnedElsewhereError
from replicator.pool.metadata_device import MIRROR, NAMES, has_metadata, is_mirrored, open_metadata
from replicator.pool.mirror_state import STATE, load_state, save_state
from replicator.pool.mirroring import add_mirror, compare_copies, create_mirrored, drop_mirror, mirror_facts
from replicator.pool.opening import grow_pool, own_pool
from replicator.pool.reading import read_beside
from replicator.pool.repairing import Wish, repair_pool
from replicator.pool.summary import summarise
from replicator.thin.dirty import superblock_sum
from replicator.thin.report import FindingKind, Severity
from replicator.thin.superblock import read_superblock
from replicator.units import METADATA_BLOCK_BYTES, MIB
from tests.support.judges import assert_clean, require
from tests.support.mirrored_pool import (
    RUINS,
    VOLUME_BYTES,
    contents,
    contents_of,
    make_mirrored,
    write_and_die,
    write_some,
)
from tests.support.pool_owner import make_pool, owned_by_child


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_mirrored(tmp_path / "pool", tmp_path / "second")
    return tmp_path / "pool"


def files(path: Path) -> tuple[bytes, bytes]:
    first, second = ((path / name).read_bytes() for name in NAMES.values())
    return first, second


def tree(path: Path) -> dict[str, tuple[bytes, int]]:
    """All files but SQLite's own."""
    there = [each for each in sorted(path.iterdir()) if each.is_file() and not each.name.startswith("catalog.db-")]
    return {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in there}


def roots(path: Path) -> tuple[int, int]:
    """Two blocks that are in use."""
    with closing(open_metadata(path, settled=True)) as device:
        superblock = read_superblock(device)
        return superblock.data_mapping_root, superblock.device_details_root


def put_block(copy: Path, number: int, content: bytes) -> None:
    with copy.open("r+b") as file:
        os.pwrite(file.fileno(), content, number * METADATA_BLOCK_BYTES)


def lost_of(path: Path) -> Side | None:
    state = load_state(path)
    assert state is not None
    return state.lost


@pytest.mark.parametrize("ruin", RUINS)
@pytest.mark.parametrize("side", Side)
def test_nothing_is_lost_with_either_copy(path: Path, ruin: str, side: Side) -> None:
    """The owner is killed, a copy destroyed; readers read on, the next owner, too, and both copies are whole again."""
    require("thin-cpp", "thin-rust")
    write_and_die(path, 8)
    expected = contents(path)
    copy = path / NAMES[side]
    RUINS[ruin](copy.resolve())
    before = tree(path)
    assert summarise(path).volume_count == 1
    assert check_pool(path).report.of(Severity.LEAK) == 0
    assert contents(path) == expected
    assert tree(path) == before, "a reader wrote"
    with own_pool(path) as pool, closing(read_beside(pool)) as reader:
        assert reader.view().volumes[0].name == "v" and contents_of(reader) == expected
        write_some(pool, 9)
    now = contents(path)
    assert now["s"] == expected["s"] and now["v"] != expected["v"]
    if ruin == "unlinked":
        assert lost_of(path) is side
        add_mirror(path, copy if side is Side.FIRST else path.parent / "third")
    compare_copies(path)
    assert lost_of(path) is None and contents(path) == now
    assert check_pool(path).report.findings == ()
    first, second = files(path)
    assert first == second
    assert_clean(path / NAMES[side])


def test_a_pool_without_a_mirror_is_one_file(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    for read_only in (True, False):
        with closing(open_metadata(tmp_path / "pool", read_only=read_only)) as device:
            assert type(device) is FileDevice
    assert mirror_facts(tmp_path / "pool") is None and not is_mirrored(tmp_path / "pool")


def test_a_copy_that_comes_back_is_made_whole_before_it_is_used(path: Path, tmp_path: Path) -> None:
    (path / "metadata").rename(tmp_path / "away")
    with own_pool(path) as pool:
        write_some(pool, 20)
    assert lost_of(path) is Side.FIRST
    now = contents(path)
    shutil.move(tmp_path / "away", path / "metadata")
    assert contents(path) == now, "a reader trusts the copy that was away"
    with own_pool(path):
        assert lost_of(path) is None
    assert files(path)[0] == files(path)[1]
    RUINS["unlinked"](tmp_path / "second")
    assert contents(path) == now


def test_only_a_lost_copy_is_not_a_pool(path: Path, tmp_path: Path) -> None:
    (path / "metadata").rename(tmp_path / "away")
    with own_pool(path) as pool:
        write_some(pool, 20)
    shutil.move(tmp_path / "away", path / "metadata")
    RUINS["unlinked"](tmp_path / "second")
    with pytest.raises(DamageError, match=r"lost on .* lacks what was written since") as caught:
        own_pool(path)
    assert caught.value.mend is not None and "pool repair" in caught.value.mend
    with pytest.raises(DamageError, match="was lost on"):
        contents(path)


def test_a_commit_that_was_cut_short_between_the_superblocks_stands(path: Path, tmp_path: Path) -> None:
    old = (tmp_path / "second").read_bytes()[:METADATA_BLOCK_BYTES]
    with own_pool(path) as pool:
        volumes.create_snapshot(pool, "v", "s2")
        newest = pool.view().at_id
    put_block(tmp_path / "second", 0, old)
    with own_pool(path) as pool:
        assert pool.view().at_id == newest
    assert files(path)[0] == files(path)[1] and lost_of(path) is None


def test_a_torn_superblock_of_the_first_is_taken_from_the_second(path: Path) -> None:
    put_block(path / "metadata", 0, bytes(512))
    with own_pool(path) as pool:
        assert pool.view().volumes[0].name == "v"
    assert files(path)[0] == files(path)[1]


def test_an_older_first_copy_is_refused(path: Path) -> None:
    older = (path / "metadata").read_bytes()
    with own_pool(path) as pool:
        volumes.create_snapshot(pool, "v", "s2")
    (path / "metadata").write_bytes(older)
    before = files(path)
    for opening in (own_pool, contents):
        with pytest.raises(DamageError, match="older copy") as caught:
            opening(path)
        assert caught.value.mend is not None and "mv" in caught.value.mend
    assert files(path) == before
    (path / "metadata").unlink()
    with own_pool(path) as pool:
        assert len(pool.view().snapshots) == 2


def test_another_state_of_the_same_transaction_is_refused_unless_it_is_the_very_file(
    path: Path, tmp_path: Path
) -> None:
    older = (path / "metadata").read_bytes()
    with own_pool(path) as pool:
        write_some(pool, 30)
    shutil.copy(path / "metadata", tmp_path / "newer")
    (path / "metadata").unlink()
    (path / "metadata").write_bytes(older)  # a new file, without the number of openings
    with pytest.raises(DamageError, match="another state of the same transaction"):
        own_pool(path)
    (path / "metadata").unlink()
    shutil.copy(tmp_path / "newer", path / "metadata")
    with own_pool(path):
        pass


def test_what_another_program_wrote_into_the_first_copy_is_the_newer_state(path: Path, tmp_path: Path) -> None:
    """In place, as a kernel does: the very file that was opened last, and no owner of ours wrote it."""
    older, (newer, _) = files(path)[0], files(path)
    with own_pool(path) as pool:
        write_some(pool, 31)
    newer = files(path)[0]
    second = path / MIRROR
    with second.open("r+b") as file:
        file.write(older)  # as though the second copy had not been given what the first one was
    dirty = (path / "dirty").read_bytes()
    with (path / "dirty").open("r+b") as file:
        file.seek(64)
        file.write(superblock_sum(older[:METADATA_BLOCK_BYTES]).to_bytes(8, "little"))
    assert dirty != (path / "dirty").read_bytes()
    with closing(open_metadata(path, settled=True)) as device:
        assert device.pread(METADATA_BLOCK_BYTES, 0) == newer[:METADATA_BLOCK_BYTES]
        assert isinstance(device, MirroredDevice) and device.unused is not None and device.unused[0] is Side.SECOND


def test_copies_of_two_pools_are_refused(path: Path, tmp_path: Path) -> None:
    create_pool(tmp_path / "other", PoolPlan(size_bytes=32 * MIB))
    shutil.copy(tmp_path / "other" / "metadata", tmp_path / "second")
    with pytest.raises(DamageError, match="is that of pool"):
        own_pool(path)
    (path / "metadata").unlink()
    with pytest.raises(DamageError, match="is that of"):
        own_pool(path)


def test_the_file_of_another_pool_is_never_overwritten(path: Path, tmp_path: Path) -> None:
    save_state(path, MirrorState(Side.SECOND, 1, "gone"))
    create_pool(tmp_path / "other", PoolPlan(size_bytes=32 * MIB))
    shutil.copy(tmp_path / "other" / "metadata", tmp_path / "second")
    theirs = (tmp_path / "second").read_bytes()
    with own_pool(path) as pool:
        write_some(pool, 40)
    assert lost_of(path) is Side.SECOND and (tmp_path / "second").read_bytes() == theirs


def test_check_names_a_difference_and_compare_mends_it(path: Path) -> None:
    number = roots(path)[0]
    put_block(path / MIRROR, number, b"\xff" * METADATA_BLOCK_BYTES)
    found = check_pool(path).report
    assert [(each.kind, each.severity) for each in found.findings] == [(FindingKind.MIRROR, Severity.DAMAGE)]
    assert f"block {number}" in found.findings[0].where and "bad in metadata.mirror" in found.findings[0].found
    assert compare_copies(path) == 0
    put_block(path / "metadata", number, b"\xff" * METADATA_BLOCK_BYTES)
    assert "bad in metadata" in check_pool(path).report.findings[0].found
    assert compare_copies(path) == 1
    assert check_pool(path).report.findings == ()
    facts = mirror_facts(path)
    assert facts is not None and facts.healed_blocks == 1


def test_check_compares_beside_an_owner(path: Path) -> None:
    with owned_by_child(path):
        assert check_pool(path).report.findings == ()
        with inspected(path) as found:
            root = next(iter(found.view.devices())).root
        put_block(path / MIRROR, root, bytes(METADATA_BLOCK_BYTES))
        assert [each.kind for each in check_pool(path).report.findings] == [FindingKind.MIRROR]


def test_a_reader_beside_the_owner_leaves_a_copy_that_is_lost_meanwhile(path: Path) -> None:
    with closing(open_metadata(path)) as reader:
        block = reader.pread(METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
        stale = bytearray(random.Random(1).randbytes(METADATA_BLOCK_BYTES))
        seal(stale, BlockKind.NODE, 1)  # good by itself: only mirror.json can tell
        put_block(path / "metadata", 1, bytes(stale))
        assert reader.pread(METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES) == stale
        save_state(path, MirrorState(Side.FIRST, 1, "gone"))
        assert reader.pread(METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES) == block


def test_growing_grows_both(path: Path) -> None:
    with own_pool(path) as pool:
        grow_pool(pool, metadata_bytes=4 * MIB)
        assert pool.status().metadata_blocks == 1024
    assert [len(each) for each in files(path)] == [4 * MIB, 4 * MIB]
    RUINS["unlinked"](path / "metadata")
    with own_pool(path) as pool:
        assert pool.status().metadata_blocks == 1024
        grow_pool(pool, metadata_bytes=5 * MIB)
    add_mirror(path, path / "metadata")
    assert files(path)[0] == files(path)[1]


def test_dropping_leaves_a_pool_without_a_mirror(path: Path, tmp_path: Path) -> None:
    expected = contents(path)
    drop_mirror(path)
    assert not is_mirrored(path) and (tmp_path / "second").exists() and contents(path) == expected
    add_mirror(path, tmp_path / "second")  # it holds this pool's metadata: it may be taken again
    RUINS["unlinked"](path / "metadata")
    drop_mirror(path)
    assert (path / "metadata").readlink() == tmp_path / "second"
    assert not is_mirrored(path) and contents(path) == expected
    with pytest.raises(NotFoundError, match="no mirror"):
        drop_mirror(path)


@pytest.mark.parametrize("lost", Side)
@pytest.mark.parametrize("line", ["said", "renamed"])
def test_a_drop_that_died_is_ended_by_the_next_owner(path: Path, lost: Side, line: str) -> None:
    expected = contents(path)
    save_state(path, MirrorState(lost, 1, "", 0, dropping=True))
    if line == "renamed" and lost is Side.FIRST:
        (path / MIRROR).replace(path / "metadata")
    elif line == "renamed":
        (path / MIRROR).unlink()
    assert contents(path) == expected and (path / STATE).exists()
    with own_pool(path):
        assert not is_mirrored(path)
    assert contents(path) == expected


def test_another_device_takes_the_place_of_the_mirror(path: Path, tmp_path: Path) -> None:
    add_mirror(path, tmp_path / "third")
    assert (path / MIRROR).readlink() == tmp_path / "third"
    with own_pool(path) as pool:
        write_some(pool, 50)
    assert files(path)[0] == files(path)[1] == (tmp_path / "third").read_bytes()


def test_what_cannot_be_a_mirror_is_refused(path: Path, tmp_path: Path) -> None:
    full, link = tmp_path / "full", tmp_path / "link"
    full.write_bytes(b"x" * 4 * MIB)
    link.symlink_to(path / "metadata")
    for target, error, text in (
        (path / "metadata", UsageError, "already"),
        (link, UsageError, "already"),
        (path / "data", UsageError, "the pool's data already"),
        (tmp_path / "second", UsageError, "metadata.mirror already"),
        (full, ConflictError, "isn't empty"),
        (path / "other", UsageError, "is called metadata.mirror"),
        (tmp_path / "none" / "file", NotFoundError, "isn't there"),
    ):
        with pytest.raises(error, match=text):
            add_mirror(path, target)
    with owned_by_child(path), pytest.raises(OwnedElsewhereError, match="is open in process"):
        add_mirror(path, tmp_path / "third")
    assert full.read_bytes() == b"x" * 4 * MIB and not (tmp_path / "third").exists()
    assert files(path)[0] == files(path)[1] and lost_of(path) is None


def test_creating_refuses_a_mirror_that_is_another_part_or_holds_something(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.write_bytes(b"x" * 4096)
    full_device = tmp_path / "device"
    full_device.write_bytes(bytes(2 * MIB))
    with pytest.raises(ConflictError, match="isn't empty"):
        create_mirrored(tmp_path / "pool", PoolPlan(size_bytes=32 * MIB), full)
    with pytest.raises(UsageError, match="too"):
        create_mirrored(tmp_path / "pool", PoolPlan(size_bytes=32 * MIB, metadata=full_device), full_device)
    assert not (tmp_path / "pool").exists()
    with pytest.raises(NotFoundError, match="is made, but its metadata has no mirror"):
        create_mirrored(tmp_path / "pool", PoolPlan(size_bytes=32 * MIB), tmp_path / "none" / "file")
    assert has_metadata(tmp_path / "pool") and not is_mirrored(tmp_path / "pool")


def test_the_mirror_may_be_a_file_of_the_pool_itself(tmp_path: Path) -> None:
    create_mirrored(tmp_path / "pool", PoolPlan(size_bytes=32 * MIB), tmp_path / "pool" / MIRROR)
    assert not (tmp_path / "pool" / MIRROR).is_symlink()
    with own_pool(tmp_path / "pool") as pool:
        volumes.create_volume(pool, "v", VOLUME_BYTES)
    assert files(tmp_path / "pool")[0] == files(tmp_path / "pool")[1]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "nonsense", '{"version": 2}', "[" * 70000, json.dumps({"version": 1, "lost": "third"})],
    ids=lambda text: text[:8],
)
def test_a_state_that_is_none_is_damage(path: Path, text: str) -> None:
    (path / STATE).write_text(text)
    with pytest.raises(FormatError, match="a mirror's state") as caught:
        own_pool(path)
    assert caught.value.mend is not None and "remove" in caught.value.mend


@pytest.mark.parametrize(
    "state",
    [
        MirrorState(),
        MirrorState(Side.FIRST, 5, "why \u00e4", 3, dropping=True),
        MirrorState(Side.SECOND, 1, "x" * 1000),
    ],
    ids=["none", "first", "second"],
)
def test_a_state_is_read_as_it_was_written(tmp_path: Path, state: MirrorState) -> None:
    assert load_state(tmp_path) is None
    save_state(tmp_path, state)
    assert load_state(tmp_path) == state


def test_repair_reads_the_better_of_both(path: Path, tmp_path: Path) -> None:
    for name, number in zip((MIRROR, "metadata"), roots(path), strict=True):
        put_block(path / name, number, bytes(METADATA_BLOCK_BYTES))
    put_block(path / "metadata", 0, bytes(METADATA_BLOCK_BYTES))
    found = repair_pool(Wish(path, tmp_path / "repaired", dry_run=True))
    assert not found.intact, "the second alone has damage"
    put_block(path / "metadata", 0, (path / MIRROR).read_bytes()[:METADATA_BLOCK_BYTES])
    found = repair_pool(Wish(path, tmp_path / "repaired", dry_run=True))
    assert found.intact and found.whole
