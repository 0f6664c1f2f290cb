"""The dirty file: its bytes, every row of its table of crashes, what its changes fold to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from replicator.errors import DamageError, UsageError
from replicator.thin.dirty import DirtyLog, DirtySet, boot_id, fold, merge_ranges, split_by_device, superblock_sum

UUID = bytes(range(16))
BASE, RESULT, OTHER = 0x1111, 0x2222, 0x3333
CAPACITY = 64


@pytest.fixture
def log(tmp_path: Path) -> DirtyLog:
    """A file that builds on BASE: one mapped block, one trim."""
    log = DirtyLog.open(tmp_path / "dirty", UUID, CAPACITY)
    log.restart(BASE)
    log.append_mapped(5, 100, 7)
    log.append_unmapped(5, 200, 30)
    return log


def copy_of(log: DirtyLog) -> DirtyLog:
    """What the next opener of this boot finds when the owner dies now."""
    path = log.path.with_name("copy")
    shutil.copy(log.path, path)
    return DirtyLog.open(path, UUID, CAPACITY)


def places(sets: list[DirtySet]) -> list[list[int]]:
    return [part.begins.tolist() for part in sets]


def test_the_layout(log: DirtyLog) -> None:
    raw = log.path.read_bytes()
    assert len(raw) == 4096 + 2 * 24 * CAPACITY
    assert raw[:16] == b"RPLDIRTY" + (1).to_bytes(8, "little")
    assert raw[16:32] == boot_id() and raw[32:48] == UUID
    numbers = [int.from_bytes(raw[at : at + 8], "little") for at in range(48, 96, 8)]
    assert numbers == [CAPACITY, 0, BASE, 0, 2, 0]
    record = (5 << 32 | 1, 100, 7), (5 << 32 | 2, 200, 30)
    assert raw[4096:4144] == b"".join(part.to_bytes(8, "little") for each in record for part in each)
    assert (log.count, log.weight) == (2, 5)


def frozen(log: DirtyLog) -> None:
    log.freeze()
    log.append_mapped(5, 300, 8)


def committing(log: DirtyLog) -> None:
    frozen(log)
    log.committing(RESULT)


def committed(log: DirtyLog) -> None:
    committing(log)
    log.committed()


def frozen_again(log: DirtyLog) -> None:
    committed(log)
    log.freeze()


def replaying(log: DirtyLog) -> None:
    frozen(log)
    log.replaying(RESULT)


FROZEN, ACTIVE = [100, 200], [300]
TABLE = [  # what was done, the superblock on disk, what is replayed: the rows of thin/dirty
    (lambda log: None, BASE, [FROZEN]),
    (frozen, BASE, [FROZEN, ACTIVE]),
    (committing, BASE, [FROZEN, ACTIVE]),
    (committing, RESULT, [ACTIVE]),
    (committed, RESULT, [ACTIVE]),
    (frozen_again, RESULT, [ACTIVE, []]),
    (replaying, BASE, [FROZEN, ACTIVE]),
    (replaying, RESULT, []),
]


@pytest.mark.parametrize(("act", "disk", "expected"), TABLE)
def test_a_death_at_each_line(
    log: DirtyLog, act: Callable[[DirtyLog], None], disk: int, expected: list[list[int]]
) -> None:
    act(log)
    found = copy_of(log)
    assert places(found.to_replay(disk)) == expected
    assert places(found.to_replay(disk)) == expected  # asking changes nothing


@pytest.mark.parametrize("act", [row[0] for row in TABLE])
def test_any_other_superblock_is_damage_and_another_boot_drops_it(
    log: DirtyLog, act: Callable[[DirtyLog], None]
) -> None:
    act(log)
    with pytest.raises(DamageError, match="another state") as refused:
        copy_of(log).to_replay(OTHER)
    assert refused.value.exit_code == 3 and refused.value.mend
    raw = bytearray(log.path.read_bytes())
    raw[16:32] = UUID
    path = log.path.with_name("other-boot")
    path.write_bytes(raw)
    found = DirtyLog.open(path, UUID, CAPACITY)
    assert found.to_replay(OTHER) == [] and found.given_up == 0


def test_what_was_given_up_is_told(log: DirtyLog) -> None:
    committing(log)
    log.void()
    found = copy_of(log)
    assert found.to_replay(BASE) == [] and found.given_up == 3
    found.restart(BASE)
    assert found.given_up == 0 and found.to_replay(OTHER) == []


def test_a_clean_close_leaves_it_empty(log: DirtyLog) -> None:
    log.restart(RESULT)
    log.close()
    assert DirtyLog.open(log.path, UUID, CAPACITY).to_replay(OTHER) == []


def test_halves_take_turns_and_fill_up(log: DirtyLog) -> None:
    for number in range(5):
        while not log.is_full:
            log.append_mapped(1, number, log.count)
        assert len(log.active()) == CAPACITY == len(log.freeze())
        assert (log.count, log.weight) == (0, 0)
        log.committing(number)
        log.committed()


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [(0, b"X", "isn't a dirty file"), (8, b"\2", "version 1"), (32, b"\xff", "another pool"), (48, b"\1", "bytes")],
)
def test_what_isnt_ours_is_refused(log: DirtyLog, offset: int, data: bytes, message: str) -> None:
    raw = bytearray(log.path.read_bytes())
    raw[offset : offset + len(data)] = data
    log.path.write_bytes(raw)
    with pytest.raises(DamageError, match=message):
        DirtyLog.open(log.path, UUID, CAPACITY)


def test_a_file_whose_maker_died_is_made_again(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("short", bytes(100)), ("zeros", bytes(9000))):
        (tmp_path / name).write_bytes(content)
        assert DirtyLog.open(tmp_path / name, UUID, CAPACITY).to_replay(BASE) == []
    with pytest.raises(UsageError):
        DirtyLog.open(tmp_path / "small", UUID, 3)


def changes(*records: tuple[str, int, int]) -> DirtySet:
    rows = [(9 << 32 | (1 if kind == "m" else 2), begin, value) for kind, begin, value in records]
    return DirtySet.of_records(np.array(rows, dtype=np.uint64).reshape(-1, 3))


@pytest.mark.parametrize(
    ("records", "mapped", "unmapped", "in_vain"),
    [
        ([], {}, [], []),
        ([("m", 4, 40), ("m", 2, 20)], {2: 20, 4: 40}, [], []),
        ([("m", 4, 40), ("m", 4, 41)], {4: 41}, [], [40]),
        ([("m", 4, 40), ("u", 3, 2)], {}, [[3, 5]], [40]),
        ([("u", 3, 2), ("m", 4, 40)], {4: 40}, [[3, 5]], []),
        ([("m", 4, 40), ("u", 4, 1), ("m", 4, 41), ("u", 5, 1)], {4: 41}, [[4, 6]], [40]),
        ([("m", 4, 40), ("m", 4, 41), ("u", 0, 9), ("m", 8, 80)], {8: 80}, [[0, 9]], [40, 41]),
        ([("u", 7, 2), ("u", 1, 2), ("u", 2, 4), ("u", 20, 1)], {}, [[1, 6], [7, 9], [20, 21]], []),
    ],
)
def test_folding(
    records: list[tuple[str, int, int]], mapped: dict[int, int], unmapped: list[list[int]], in_vain: list[int]
) -> None:
    folded = fold(changes(*records))
    assert dict(zip(folded.virtual_blocks.tolist(), folded.data_blocks.tolist(), strict=True)) == mapped
    assert folded.unmapped.tolist() == unmapped and folded.superseded.tolist() == in_vain


def test_folding_is_what_doing_one_by_one_comes_to() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        kinds = rng.choice(["m", "m", "u"], 40)
        values = [100 + at if kind == "m" else 1 + at % 9 for at, kind in enumerate(kinds)]
        rows = [(str(kind), int(rng.integers(0, 30)), value) for kind, value in zip(kinds, values, strict=True)]
        model, ranges = dict[int, int](), set[int]()
        for kind, begin, value in rows:
            if kind == "m":
                model[begin] = value
            else:
                ranges |= set(range(begin, begin + value))
                model = {block: data for block, data in model.items() if not begin <= block < begin + value}
        folded = fold(changes(*rows))
        assert dict(zip(folded.virtual_blocks.tolist(), folded.data_blocks.tolist(), strict=True)) == model
        assert {block for begin, end in folded.unmapped.tolist() for block in range(begin, end)} == ranges
        assert set(folded.superseded.tolist()) == {v for k, _, v in rows if k == "m"} - set(model.values())


def test_devices_are_folded_apart() -> None:
    rows = np.array([(2 << 32 | 1, 1, 10), (1 << 32 | 1, 1, 11), (2 << 32 | 2, 1, 1)], dtype=np.uint64)
    found = {dev: folded.virtual_blocks.tolist() for dev, folded in split_by_device(DirtySet.of_records(rows))}
    assert found == {1: [1], 2: []}


def test_ranges_and_sums() -> None:
    assert merge_ranges(np.empty((0, 2), dtype=np.uint64)).tolist() == []
    assert superblock_sum(bytes(4096)) != superblock_sum(bytes(4095) + b"\1")
