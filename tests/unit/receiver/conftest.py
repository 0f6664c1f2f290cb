"""What most tests of the receiver begin with: an empty replica pool, clean at the end, and a source with a past."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.units import KIB
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume

SIZE = 20 * 64 * KIB


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[ReplicaPool]:
    """A pool for replicas; at the end our own check finds it clean."""
    pool = ReplicaPool(tmp_path)
    yield pool
    pool.assert_clean()


@pytest.fixture
def source() -> SourceVolume:
    """A volume of 20 blocks with three transactions."""
    source = SourceVolume(3, SIZE)
    for _ in range(3):
        source.transaction(source.scribble())
    return source
