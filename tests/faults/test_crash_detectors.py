"""Disks that lie: writes that went elsewhere, or nowhere, though the flush behind them was answered.

No order of writes survives that, so nothing is promised but this: metadata that isn't what it should be is *found*, by
checksum, by its own block number, or by the counts (check), and never taken for something else. What can't be found
in the metadata alone, and is outside:

    a lost write of block 0             the pool is as it was a commit earlier; the log's tail says so to the publisher
    data written elsewhere, or lost     dm-thin has no checksums of data; the log's hashes of chunks find it
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import FormatError, ReplicatorError
from replicator.thin.check import check
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.crash_disk import METADATA, CrashJournal, Image
from tests.support.crash_knowledge import Note, differing
from tests.support.crash_oracle import OTHER_BOOT
from tests.support.crash_pool import LIVE, ROOMY_BLOCKS, CrashPool, base_pool, opened
from tests.support.crash_workloads import Player

WORDS = ("sf", "sc", "cD", "dA", "hsf", "wR", "nSf")
TARGETS = 5
PIECE_BYTES = 32


def played(word: str) -> tuple[CrashPool, Note, Image]:
    """A workload that ended well, all of it flushed; `dirty` is another boot's."""
    base, journal = base_pool(ROOMY_BLOCKS), CrashJournal()
    with opened(base.image, base.views, journal=journal, live=LIVE) as crash:
        player = Player(crash, base)
        player.play(f"{word}f")
        note, at_id, dirty = journal.note, crash.pool.view().at_id, crash.dirty.content()
    assert isinstance(note, Note)
    rebooted = dirty[:16] + OTHER_BOOT + dirty[32:]
    return crash, note, Image(crash.metadata.content(), crash.data.content(), rebooted, at_id, word)


def writes(crash: CrashPool) -> list[int]:
    """The metadata blocks that were written, block 0 apart."""
    found = set[int]()
    for event in crash.journal.events:
        if event.device == METADATA and event.write is not None:
            begin = event.write.offset_bytes // METADATA_BLOCK_BYTES
            found.update(range(begin, begin + len(event.write.data) // METADATA_BLOCK_BYTES))
    return sorted(found - {0})


def block_of(content: bytes, block: int) -> bytes:
    return content[block * METADATA_BLOCK_BYTES : (block + 1) * METADATA_BLOCK_BYTES]


def with_block(content: bytes, block: int, row: bytes) -> bytes:
    return content[: block * METADATA_BLOCK_BYTES] + row + content[(block + 1) * METADATA_BLOCK_BYTES :]


def verdict(crash: CrashPool, note: Note, image: Image) -> str:
    """ "found", or "harmless"; AssertionError for what is neither. Opening it raises nothing but typed errors."""
    found = bool(check(MemoryDevice(content=image.metadata)).findings)
    try:
        with opened(image, crash.catalogue.views) as again:
            sizes = note.devices(note.at_id)
            contents = {dev: again.engine.open_device(dev, size).pread(size, 0) for dev, size in sizes.items()}
    except ReplicatorError:
        assert found, "refused, though the check finds nothing"
        return "found"
    if found:
        return "found"
    for dev_id, content in contents.items():
        assert not differing(content, note.allowed(note.at_id, dev_id, power_cut=True), 512), "neither found nor right"
    return "harmless"


@pytest.mark.parametrize("word", WORDS)
def test_metadata_written_elsewhere_or_nowhere_is_found(word: str) -> None:
    crash, note, image = played(word)
    before, chance, verdicts = base_pool(ROOMY_BLOCKS).image.metadata, random.Random(word), Counter[str]()
    written = writes(crash)
    for block in written:
        stale = with_block(image.metadata, block, block_of(before, block))
        verdicts[f"lost: {verdict(crash, note, image._replace(metadata=stale))}"] += 1
        for target in chance.sample(range(len(before) // METADATA_BLOCK_BYTES), TARGETS):
            for place in (stale, image.metadata):
                if target not in (0, block):
                    moved = with_block(place, target, block_of(image.metadata, block))
                    verdicts[f"elsewhere: {verdict(crash, note, image._replace(metadata=moved))}"] += 1
        over = chance.choice([other for other in written if other != block])
        moved = with_block(image.metadata, over, block_of(image.metadata, block))
        verdicts[f"over another: {verdict(crash, note, image._replace(metadata=moved))}"] += 1
    print(f"\n{word}: {dict(sorted(verdicts.items()))}")
    assert verdicts["lost: found"] and verdicts["elsewhere: found"]


@pytest.mark.parametrize("word", WORDS[:3])
def test_a_superblock_torn_within_its_sector_is_refused_by_its_checksum(word: str) -> None:
    crash, _, image = played(word)
    old, new, refused = block_of(base_pool(ROOMY_BLOCKS).image.metadata, 0), block_of(image.metadata, 0), 0
    for pieces in range(1, 1 << 12):  # 364 bytes of it are used: any of their pieces
        torn = bytearray(old)
        for place in range(12):
            if pieces >> place & 1:
                torn[place * PIECE_BYTES : (place + 1) * PIECE_BYTES] = new[
                    place * PIECE_BYTES : (place + 1) * PIECE_BYTES
                ]
        if bytes(torn) in (old, new) or pieces % 37:
            continue
        refused += 1
        with (
            pytest.raises(FormatError),
            opened(image._replace(metadata=with_block(image.metadata, 0, bytes(torn))), crash.catalogue.views),
        ):
            pass
    print(f"\n{word}: {refused} torn superblocks refused")
    assert refused
