"""A replica's pool on disk that keeps one point of a volume as a snapshot, and remembers a log of more."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from replicator.log.object_log import directory_log
from replicator.pool.catalogue_schema import Purpose, Setting
from replicator.pool.changes import Put
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.volumes import create_volume
from replicator.repository.logged import read_history
from replicator.repository.remembered import LOG_SETTING
from replicator.units import CHUNK_BYTES, MIB
from tests.support.volume_histories import NAME, History

SIZE = 40 * CHUNK_BYTES + 1536


def pool_with_point(
    folder: Path, seed: int, block_bytes: int, kept: int, transactions: int
) -> tuple[OwnedPool, History]:
    """A pool that keeps transaction `kept` as a snapshot, and remembers a log of more."""
    rng = random.Random(seed)
    history = History(directory_log(folder / "log", create=True), rng, SIZE)
    for _ in range(transactions):
        history.transaction(resize=rng.random() < 0.5)
    history.close()
    create_pool(folder / "pool", PoolPlan(size_bytes=64 * MIB, block_bytes=block_bytes, metadata_bytes=4 * MIB))
    pool = own_pool(folder / "pool")
    data = history.contents[1, kept]
    volume = create_volume(pool, NAME, len(data), uuid=history.volume)
    device = pool.engine.open_device(volume.dev_id, len(data), read_only=False)
    with pool.engine.gate.writing():
        for at in range(0, len(data), CHUNK_BYTES):
            if any(part := data[at : at + CHUNK_BYTES]):
                device.pwrite(part, at)
    pool.flush()
    made = pool.cut(CutRequest(uuid4(), (volume.uuid,), Purpose.POINT))
    logged = {each.number: each for each in read_history(history.log, history.volume).points}
    point = logged[kept]
    row = replace(
        pool.view().snapshot(made.dev_ids[0]), number=kept, digest=point.digest, timestamp_ns=point.timestamp_ns
    )
    remembered = [Put(each) for each in logged.values()]
    pool.switch(Switch(changes=(Put(row), *remembered, Put(Setting(LOG_SETTING, str(folder / "log"))))))
    return pool, history
