"""Opening a pool for writing: sync, look what a dead owner left, replay it, and start the engine.

The way into thin/engine, for the process that holds the pool's locks. What is on disk if the machine or the process
dies here:

    line                            on disk                                        next opening
    while syncing                   what was there                                 begins again
    replay folded, not written      what was there; `dirty` as it was              replays again
    block 0 of the replay written   the replayed state; `dirty` names it           replays nothing
    after restart                   the replayed state; `dirty` empty              nothing to do

Failures: FormatError and DamageError of what is opened; ConflictError for NEEDS_CHECK.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import FormatError
from replicator.thin.dirty import DEFAULT_CAPACITY, DirtyLog, superblock_sum
from replicator.thin.engine import Engine, EngineSettings
from replicator.thin.folding import fold_into
from replicator.thin.metadata import PoolMetadata
from replicator.units import METADATA_BLOCK_BYTES


def open_engine(
    metadata: BlockDevice,
    data: BlockDevice,
    dirty: Path,
    settings: EngineSettings | None = None,
    *,
    time_is_capped: bool = False,
    dirty_capacity: int = DEFAULT_CAPACITY,
) -> tuple[Engine, int]:
    """The running engine over two devices, and how many acknowledged changes of a dead owner it replayed.

    The caller holds the pool's locks, and closes engine, then devices. `time_is_capped`: see PoolMetadata.
    """
    metadata.flush()
    data.flush()
    pool = PoolMetadata.open(metadata, time_is_capped=time_is_capped)
    _check_data(pool, data)
    log = DirtyLog.open(dirty, pool.superblock.uuid, dirty_capacity)
    given_up = log.given_up
    block0 = metadata.pread(METADATA_BLOCK_BYTES, 0)
    sets = log.to_replay(superblock_sum(block0))
    replayed = sum(map(len, sets))
    if replayed:
        block0 = _replay(pool, data, log)
    log.restart(superblock_sum(block0))
    engine = Engine(pool, data, log, settings)
    engine.given_up_count = given_up
    return engine, replayed


def _replay(pool: PoolMetadata, data: BlockDevice, log: DirtyLog) -> bytes:
    sets = log.to_replay(superblock_sum(pool.store.device.pread(METADATA_BLOCK_BYTES, 0)))
    vain = [block for part in sets for block in fold_into(pool, part)]
    block0 = pool.seal()
    log.replaying(superblock_sum(block0))
    pool.write(block0, data.flush)
    counts = pool.transaction.data.counts
    counts.settle(np.unique(np.concatenate([pool.finish(), *vain])))
    return block0


def _check_data(pool: PoolMetadata, data: BlockDevice) -> None:
    expected = pool.superblock.data_space_map.nr_blocks * pool.superblock.data_block_bytes
    if data.size_bytes < expected:
        raise FormatError(data.name, f"a data device of at least {expected} bytes", str(data.size_bytes))
