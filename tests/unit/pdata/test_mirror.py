"""M1 to M5, M7 of pdata/mirror, over disks in memory that fail on demand; and what a copy is brought up to date by."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from replicator.blockdev.faulty import Fault, FaultyDevice, OperationKind
from replicator.blockdev.interface import BlockDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import DeviceError
from replicator.pdata.block import BlockKind, seal
from replicator.pdata.mirror import MirroredDevice, MirrorState, Side
from replicator.pdata.mirror_copying import TargetError, bring_up_to_date, heal_from, is_good
from replicator.units import METADATA_BLOCK_BYTES as BLOCK

BLOCKS = 520  # two steps of a copy, and a rest
WRITES = frozenset({OperationKind.WRITE})
FLUSHES = frozenset({OperationKind.FLUSH})
READS = frozenset({OperationKind.READ})


def metadata_block(number: int, kind: BlockKind = BlockKind.NODE, seed: int = 0) -> bytes:
    block = bytearray(random.Random(seed * BLOCKS + number).randbytes(BLOCK))
    seal(block, kind, number)
    return bytes(block)


def content(blocks: int = BLOCKS, seed: int = 0) -> bytes:
    """A device of good blocks of every kind, and garbage that nobody uses in every seventh."""
    chance, kinds = random.Random(seed), [BlockKind.NODE, BlockKind.BITMAP, BlockKind.INDEX]
    parts = [metadata_block(0, BlockKind.SUPERBLOCK, seed)]
    for number in range(1, blocks):
        garbage = number % 7 == 6
        parts.append(chance.randbytes(BLOCK) if garbage else metadata_block(number, kinds[number % 3], seed))
    return b"".join(parts)


@dataclass
class Pair:
    """Two copies, each recorded and failing as told, and the states that were saved."""

    first: FaultyDevice
    second: FaultyDevice
    device: MirroredDevice
    saved: list[MirrorState] = field(default_factory=list)

    @classmethod
    def make(
        cls,
        first: bytes | None = None,
        second: bytes | None = None,
        *,
        faults: Iterable[Fault] = (),
        other_faults: Iterable[Fault] = (),
        state: MirrorState | None = None,
        behind: Side | None = None,
        read_only: bool = False,
    ) -> Pair:
        same = content()
        copies = (
            FaultyDevice(MemoryDevice(content=first or same, name="A"), faults, record_data=True),
            FaultyDevice(MemoryDevice(content=second or same, name="B"), other_faults, record_data=True),
        )
        saved: list[MirrorState] = []
        device = MirroredDevice(
            "metadata",
            dict(zip(Side, copies, strict=True)),
            state or MirrorState(),
            saved.append,
            behind=behind,
            read_only=read_only,
            clock_ns=lambda: 7,
        )
        return cls(*copies, device, saved)

    @classmethod
    def failing(cls, side: Side, faults: list[Fault], behind: Side | None = None) -> Pair:
        """With faults in that copy."""
        if side is Side.FIRST:
            return cls.make(faults=faults, behind=behind)
        return cls.make(other_faults=faults, behind=behind)


def bytes_of(device: FaultyDevice) -> bytes:
    return device._inner.pread(device.size_bytes, 0)


def with_blocks(whole: bytes, blocks: dict[int, bytes]) -> bytes:
    changed = bytearray(whole)
    for number, block in blocks.items():
        changed[number * BLOCK : (number + 1) * BLOCK] = block
    return bytes(changed)


BAD = {
    "zeros": bytes(BLOCK),
    "garbage": random.Random(1).randbytes(BLOCK),
    "another's": metadata_block(4),
    "torn": metadata_block(3)[:512] + metadata_block(3, seed=1)[512:],
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("length", [1, 5])
def test_a_bad_block_is_taken_from_the_other_copy_and_healed(what: str, length: int) -> None:
    whole = content()
    pair = Pair.make(first=with_blocks(whole, {3: BAD[what]}))
    assert pair.device.pread(length * BLOCK, 3 * BLOCK) == whole[3 * BLOCK : (3 + length) * BLOCK]
    assert bytes_of(pair.first) == whole
    pair.device.flush()
    assert [each.healed_blocks for each in pair.saved] == [1]
    pair.device.flush()
    assert len(pair.saved) == 1


def test_readers_heal_nothing() -> None:
    whole = content()
    damaged = with_blocks(whole, {3: BAD["zeros"]})
    pair = Pair.make(first=damaged, read_only=True)
    assert pair.device.pread(len(whole), 0) == whole
    assert bytes_of(pair.first) == damaged and not pair.saved


def test_what_is_bad_in_both_goes_up_as_it_is() -> None:
    whole = content()
    pair = Pair.make(with_blocks(whole, {3: BAD["garbage"]}), with_blocks(whole, {3: BAD["zeros"]}))
    assert pair.device.pread(BLOCK, 3 * BLOCK) == BAD["garbage"]
    assert pair.first.operations[-1].kind != OperationKind.WRITE


def test_blocks_in_no_use_may_hold_anything() -> None:
    one, other = content(seed=0), content(seed=1)
    garbage = {number: other[number * BLOCK : (number + 1) * BLOCK] for number in range(6, BLOCKS, 7)}
    pair = Pair.make(one, with_blocks(one, garbage))
    assert pair.device.pread(len(one), 0) == one
    assert not any(each.kind is OperationKind.WRITE for each in pair.first.operations + pair.second.operations)


@pytest.mark.parametrize("side", Side)
def test_a_block_that_one_copy_cannot_read_is_read_from_the_other(side: Side) -> None:
    whole = content()
    faults = [Fault(nth, kinds=READS) for nth in (1, 2)]
    pair = Pair.failing(side, faults)
    assert pair.device.pread(20 * BLOCK, BLOCK) == whole[BLOCK : 21 * BLOCK]
    assert pair.device.unused is None


def test_what_neither_copy_can_read_is_an_error() -> None:
    dead = [Fault(1, kinds=READS, for_good=True)]
    pair = Pair.make(faults=dead, other_faults=dead)
    with pytest.raises(DeviceError, match="faulty A"):
        pair.device.pread(2 * BLOCK, BLOCK)


def test_a_copy_that_cannot_be_healed_is_lost() -> None:
    whole = content()
    pair = Pair.make(with_blocks(whole, {3: BAD["zeros"]}), faults=[Fault(1, kinds=WRITES)])
    assert pair.device.pread(BLOCK, 3 * BLOCK) == whole[3 * BLOCK : 4 * BLOCK]
    assert [(each.lost, each.since_ns) for each in pair.saved] == [(Side.FIRST, 7)]


def test_block_0_is_flushed_in_the_first_copy_before_the_second_is_written() -> None:
    order: list[str] = []

    class Told(MemoryDevice):
        def pwrite(self, data: object, offset_bytes: int) -> None:
            order.append(f"{self.name} {offset_bytes}")
            super().pwrite(data, offset_bytes)  # type: ignore[arg-type]  # what it was given

        def flush(self) -> None:
            order.append(f"{self.name} flush")

    copies = dict(zip(Side, (Told(content=content(), name="A"), Told(content=content(), name="B")), strict=True))
    device = MirroredDevice("metadata", copies, MirrorState(), lambda _: None)
    device.pwrite(metadata_block(1), BLOCK)
    device.flush()
    device.pwrite(metadata_block(0, BlockKind.SUPERBLOCK), 0)
    device.flush()
    assert order == [
        *("A 4096", "B 4096", "A flush", "B flush"),
        *("A 0", "A flush", "B 0", "B flush", "A flush", "B flush"),
    ]


@pytest.mark.parametrize("kinds", [WRITES, FLUSHES])
@pytest.mark.parametrize("side", Side)
def test_a_copy_whose_write_fails_is_lost_before_the_write_is_answered(
    kinds: frozenset[OperationKind], side: Side
) -> None:
    for nth in range(1, 8):
        faults = [Fault(nth, kinds=kinds, for_good=True)]
        pair = Pair.failing(side, faults)
        failing, whole = (pair.first, pair.second) if side is Side.FIRST else (pair.second, pair.first)
        for number in (1, 2, 0):
            pair.device.pwrite(metadata_block(number, seed=5), number * BLOCK)
            assert bool(failing.met) == bool(pair.saved), "answered, and not saved"
            pair.device.flush()
            assert bool(failing.met) == bool(pair.saved), "answered, and not saved"
        expected = with_blocks(content(), {number: metadata_block(number, seed=5) for number in (0, 1, 2)})
        assert bytes_of(whole) == expected
        assert pair.device.pread(len(expected), 0) == expected, "read from the lost copy"
        if not failing.met:
            assert nth > 3
            return
        assert [each.lost for each in pair.saved] == [side]
    raise AssertionError("every run met a fault")


def test_both_copies_failing_is_an_error() -> None:
    dead = [Fault(1, kinds=WRITES, for_good=True)]
    pair = Pair.make(faults=dead, other_faults=dead)
    with pytest.raises(DeviceError, match="faulty B"):
        pair.device.pwrite(metadata_block(1), BLOCK)


def test_a_state_that_cannot_be_saved_fails_the_write() -> None:
    def refuse(_: MirrorState) -> None:
        raise DeviceError("mirror.json", 0, errno.ENOSPC, "no room")

    first = FaultyDevice(MemoryDevice(content=content()), [Fault(1, kinds=WRITES)])
    device = MirroredDevice(
        "m", {Side.FIRST: first, Side.SECOND: MemoryDevice(content=content())}, MirrorState(), refuse
    )
    with pytest.raises(DeviceError, match=r"mirror\.json"):
        device.pwrite(metadata_block(1), BLOCK)


def test_a_read_stands_though_the_loss_of_the_other_copy_cannot_be_saved() -> None:
    whole, kept = content(), with_blocks(content(), {3: BAD["zeros"]})

    def refuse(_: MirrorState) -> None:
        raise DeviceError("mirror.json", 0, errno.ENOSPC, "no room")

    first = FaultyDevice(MemoryDevice(content=kept), [Fault(1, kinds=WRITES)])
    copies: dict[Side, BlockDevice] = {Side.FIRST: first, Side.SECOND: MemoryDevice(content=whole)}
    device = MirroredDevice("metadata", copies, MirrorState(), refuse)
    assert device.pread(BLOCK, 3 * BLOCK) == whole[3 * BLOCK : 4 * BLOCK]
    assert bytes_of(first) == kept and device.unused is None and device.state == MirrorState()
    assert device.pread(BLOCK, 3 * BLOCK) == whole[3 * BLOCK : 4 * BLOCK]
    assert bytes_of(first) == whole, "tried again"


@pytest.mark.parametrize("kinds", [WRITES, FLUSHES])
@pytest.mark.parametrize("side", Side)
def test_a_copy_is_not_called_lost_before_the_other_one_was_written(
    side: Side, kinds: frozenset[OperationKind]
) -> None:
    pair = Pair.failing(side, [Fault(1, kinds=kinds, for_good=True)], behind=side.other)
    with pytest.raises(DeviceError, match="injected"):
        pair.device.settle(lambda _: True)
    assert not pair.saved and pair.device.state.lost is None


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "behind"])
def test_settling_brings_the_other_copy_up_to_date(side: Side, lost: bool) -> None:
    old, new = content(seed=1), content(seed=2)
    first, second = (old, new) if side is Side.FIRST else (new, old)
    state = MirrorState(side, 3, "gone") if lost else MirrorState()
    pair = Pair.make(first, second, state=state, behind=None if lost else side)
    assert pair.device.pread(len(new), 0) == new
    pair.device.settle(lambda _: True)
    assert bytes_of(pair.first) == bytes_of(pair.second) == new
    assert [each.lost for each in pair.saved] == ([None] if lost else [side, None])
    assert pair.device.unused is None
    target = pair.first if side is Side.FIRST else pair.second
    changes = [each for each in target.operations if each.kind in WRITES | FLUSHES]
    kinds = [(each.kind, each.offset_bytes == 0) for each in changes]
    assert kinds[-3:] == [(OperationKind.FLUSH, True), (OperationKind.WRITE, True), (OperationKind.FLUSH, True)]
    assert (OperationKind.WRITE, True) not in kinds[:-2], "block 0 isn't the last"


def test_a_lost_copy_that_may_not_be_overwritten_is_left_alone() -> None:
    old = content(seed=1)
    pair = Pair.make(old, state=MirrorState(Side.FIRST, 3, "gone"))
    pair.device.settle(lambda _: False)
    pair.device.pwrite(metadata_block(9, seed=9), 9 * BLOCK)
    pair.device.flush()
    assert bytes_of(pair.first) == old and not pair.first.operations and not pair.saved


@pytest.mark.parametrize("kinds", [WRITES, FLUSHES])
def test_a_copy_that_fails_while_it_is_brought_up_to_date_stays_lost(kinds: frozenset[OperationKind]) -> None:
    pair = Pair.make(content(seed=1), state=MirrorState(Side.FIRST), faults=[Fault(2, kinds=kinds)])
    pair.device.settle(lambda _: True)
    assert [each.lost for each in pair.saved] == [Side.FIRST] and "injected" in pair.saved[0].why
    assert pair.device.unused is not None and pair.device.pread(len(content()), 0) == content()


class Worn(MemoryDevice):
    """Block 3 of it can't be read."""

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        if offset_bytes <= 3 * BLOCK < offset_bytes + length_bytes:
            raise DeviceError(f"read of {self.name}", 3 * BLOCK, errno.EIO, "worn out")
        return super().pread(length_bytes, offset_bytes)


def test_what_the_source_cannot_read_becomes_zeros_in_the_target() -> None:
    whole = content()
    target = MemoryDevice(content=with_blocks(content(seed=3), {3: BAD["garbage"]}))
    done: list[int] = []
    bring_up_to_date(Worn(content=whole), target, done.append)
    assert target.content() == with_blocks(whole, {3: bytes(BLOCK)})
    assert done == [256 * BLOCK, 512 * BLOCK, 520 * BLOCK]


def test_the_last_good_copy_of_a_block_is_not_overwritten() -> None:
    """What the source can't read, the target has, perhaps an older one: nothing at all is written."""
    source, target = Worn(content=content(), name="A"), FaultyDevice(MemoryDevice(content=content(seed=3)))
    with pytest.raises(TargetError, match="block 3 "):
        bring_up_to_date(source, target)
    assert not [each for each in target.operations if each.kind is OperationKind.WRITE]
    saved: list[MirrorState] = []
    copies: dict[Side, BlockDevice] = {Side.FIRST: source, Side.SECOND: target}
    device = MirroredDevice("metadata", copies, MirrorState(Side.SECOND, 3, "gone"), saved.append)
    device.settle(lambda _: True)
    assert bytes_of(target) == content(seed=3) and list(device.copies) == [Side.FIRST]
    assert [each.lost for each in saved] == [Side.SECOND] and "block 3 " in saved[0].why


def test_only_what_differs_is_written() -> None:
    target = FaultyDevice(MemoryDevice(content=with_blocks(content(), {300: bytes(BLOCK)})))
    bring_up_to_date(MemoryDevice(content=content()), target)
    written = [each.offset_bytes // BLOCK for each in target.operations if each.kind is OperationKind.WRITE]
    assert written == [300, 0]


def test_the_targets_failure_is_told_from_the_sources() -> None:
    with pytest.raises(TargetError):
        bring_up_to_date(
            MemoryDevice(content=content()), FaultyDevice(MemoryDevice(BLOCKS * BLOCK), [Fault(1, kinds=WRITES)])
        )
    with pytest.raises(DeviceError):
        bring_up_to_date(
            FaultyDevice(MemoryDevice(content=content()), [Fault(1, kinds=WRITES)]), MemoryDevice(BLOCKS * BLOCK)
        )


def test_readers_take_the_copies_that_they_are_told_of() -> None:
    one, other = content(seed=1), content(seed=2)
    told: list[dict[Side, MemoryDevice]] = []
    device = MirroredDevice(
        "metadata",
        {Side.FIRST: MemoryDevice(content=one)},
        MirrorState(),
        lambda _: None,
        read_only=True,
        look=lambda: told.pop() if told else None,
    )
    assert device.pread(BLOCK, BLOCK) == one[BLOCK : 2 * BLOCK]
    told.append({Side.SECOND: MemoryDevice(content=other)})
    assert device.pread(BLOCK, BLOCK) == other[BLOCK : 2 * BLOCK]


@pytest.mark.parametrize("kind", BlockKind)
def test_a_good_block_is_of_any_kind_and_at_its_place(kind: BlockKind) -> None:
    block = metadata_block(12, kind)
    assert is_good(block, 12) and not is_good(block, 13)
    for at in (0, 8, 100, 4095):
        assert not is_good(block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :], 12)
    assert not is_good(bytes(BLOCK), 0)


def test_what_is_bad_is_taken_from_a_copy_of_the_same_commit_only() -> None:
    whole = content()
    damaged = with_blocks(whole, {3: BAD["zeros"], 301: BAD["garbage"]})
    source = MemoryDevice(content=damaged)
    other = with_blocks(whole, {0: metadata_block(0, BlockKind.SUPERBLOCK, 9), 6: bytes(BLOCK), 4: bytes(BLOCK)})
    assert heal_from(source, MemoryDevice(content=other)) == 2
    assert source.content() == whole
    source = MemoryDevice(content=damaged)
    assert heal_from(source, MemoryDevice(content=with_blocks(whole, {5: metadata_block(5, seed=9)}))) == 0
    assert source.content() == damaged
