"""The book of reserved blocks: what a connection that was cut off held never goes back (R2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replicator.exporter.reservations import Reservations
from replicator.pool.interface import Filling
from replicator.pool.opening import OwnedPool, own_pool
from tests.support.pool_owner import make_pool

HOLDER = 7


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        yield owned


class SwitchFailedError(Exception):
    """What a switch ends with here."""


@pytest.mark.parametrize("cut_off", [True, False])
def test_a_holder_that_ends_during_a_failing_switch(pool: OwnedPool, cut_off: bool) -> None:
    book, free = Reservations(pool), pool.status().data_free_blocks
    book.begin(HOLDER)
    blocks = book.reserve(HOLDER, 10)
    filling = Filling(1, np.arange(6, dtype=np.uint64), blocks[:6])
    with pytest.raises(SwitchFailedError), book.claimed((filling,)):
        book.end(HOLDER, cut_off=cut_off)
        raise SwitchFailedError
    assert pool.status().data_free_blocks == (free - 10 if cut_off else free)
