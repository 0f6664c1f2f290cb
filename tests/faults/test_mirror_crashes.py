"""Every state that a crash can leave of a pool with mirrored metadata, each copy destroyed in turn: nothing is lost.

Dead processes and power cuts that take what they like of each copy's unflushed writes; and a copy whose device goes
away at its n-th write or flush, for every n.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from replicator.blockdev.faulty import Fault, OperationKind
from replicator.pdata.mirror import Side
from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import make_small
from tests.support.crash_runs import judge
from tests.support.judges import require
from tests.support.mirror_crashes import DESTROYED, Sweep

WORDS = ["c", "A", "D"]
JUDGED = 12


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of 64 blocks; and real files that carry simulated disks needn't be synced."""
    make_small(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


def sweep_of(folder: Path, seed: int, of_dead: int = 8) -> Sweep:
    folder.mkdir()
    return Sweep(folder, Explorer(seed), random.Random(seed), of_dead)


@pytest.mark.parametrize("word", WORDS)
def test_every_crash_with_each_copy_destroyed(word: str, tmp_path: Path) -> None:
    require("thin-cpp", "thin-rust")
    sweep = sweep_of(tmp_path / "pool", 1)
    sweep.crash(word)
    judged = judge(sweep.explorer, tmp_path, JUDGED)
    print(f"\n{word}: opened {dict(sweep.opened)}, {sweep.explorer.opened_count} distinct; {judged} judged")
    assert sweep.opened.keys() == {"nothing", *(f"{side} {how}" for side in Side for how in DESTROYED)}
    assert not sweep.refused


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("kind", [OperationKind.WRITE, OperationKind.FLUSH])
def test_every_crash_around_the_loss_of_a_copy(side: Side, kind: OperationKind, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "pool", 2, 2)
    met, nth = True, 0
    while met:
        nth += 1
        met = sweep.crash("c", [Fault(nth, kinds=frozenset({kind}), for_good=True)], side)
    print(f"\n{side} {kind}: {nth - 1} faults, opened {dict(sweep.opened)}, {sweep.refused} rightly refused")
    assert nth > 2 and sweep.refused


@pytest.mark.parametrize("side", Side)
def test_every_crash_while_a_copy_is_brought_up_to_date(side: Side, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "pool", 3)
    sweep.resync(side)
    print(f"\n{side}: opened {dict(sweep.opened)}, {sweep.refused} rightly refused")
    assert sweep.opened["nothing"] and sweep.refused
