"""A crash in the recovery from a crash, and crashes of longer workloads by seed.

The first crash is always that of the process, since only then does the next opening write: it replays `dirty`. The
second is the process's again, or the machine's: death followed by a power cut.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from replicator.pool.changes import Put
from tests.support.crash_disk import CrashJournal
from tests.support.crash_knowledge import Note
from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import LIVE, base_pool, make_small, opened
from tests.support.crash_runs import ALL_LETTERS, crash_words, judge
from tests.support.crash_workloads import Player
from tests.support.judges import require

NESTED = {"sm": 240, "sg": 350, "wnA": 130, "dbm": 280, "wE": 320}  # at least so many states; `dirty` holds records
LONG = 14


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of 64 blocks, data by fours."""
    make_small(monkeypatch)


@pytest.mark.parametrize("word", NESTED)
def test_a_crash_in_the_recovery(word: str, tmp_path: Path) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(len(word))
    crash_words(explorer, [word], nested=True)
    nested = sum(count for kind, count in explorer.kinds.items() if kind.startswith("in recovery"))
    print(f"\n{word}: {nested} distinct states after a crash in the recovery, {explorer.opened_count} in all")
    judge(explorer, tmp_path, 16)
    assert nested >= NESTED[word]


def long_word(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices(ALL_LETTERS, k=length))


@pytest.mark.parametrize("seed", range(4))
def test_crashes_of_a_long_workload(seed: int, tmp_path: Path) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(seed)
    word = long_word(seed, LONG)
    crash_words(explorer, [word], whole=True)
    print(f"\n{word}: {explorer.opened_count} distinct states")
    judge(explorer, tmp_path, 16)
    assert explorer.opened_count >= 100


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 164))
def test_crashes_of_a_very_long_workload(seed: int, tmp_path: Path) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(seed, thorough=True)
    word = long_word(seed, 5 * LONG)
    crash_words(explorer, [word], whole=True, nested=True)
    print(f"\n{word}: {explorer.opened_count} distinct states")
    judge(explorer, tmp_path, None)


def test_the_oracle_sees_a_lost_write() -> None:
    """It can fail: a device or a flushed write that isn't there, and one sector that nobody wrote."""
    base, journal = base_pool(), CrashJournal()
    with opened(base.image, base.views, journal=journal, live=LIVE) as crash:
        player = Player(crash, base)
        player.play("of")
        after = journal.note
    assert isinstance(after, Note)
    row = replace(after.view.volume("b"), uuid=UUID(int=9), name="lost", dev_id=9)
    more = replace(after.view.after([Put(row)], after.at_id + 1), at_id=after.at_id)
    with pytest.raises(AssertionError, match=r"devices \[1, 2, 3, 4, 5\], not \[1, 2, 3, 9, 4, 5\]"):
        Explorer().look(base.image, replace(after, view=more), base.views, power_cut=True)
    with pytest.raises(AssertionError, match="device 1 at 7: pieces"):
        Explorer().look(base.image, after, base.views, power_cut=True)
    place = crash.data.content().index(player.now(1)[4096:8192])
    data = bytearray(crash.data.content())
    data[place + 600] ^= 1
    broken = base.image._replace(metadata=crash.metadata.content(), data=bytes(data))
    with pytest.raises(AssertionError, match=r"device 1 at 7: pieces \[9\] of 512"):
        Explorer().look(broken, after, base.views, power_cut=True)
