"""Every state that a crash can leave of short workloads: it opens, is sound, and holds what was promised (P1, P1b, P2).

`make test` plays all words of at most two operations and all of three of the core letters, every dead process and a
choice of power cuts at each instant of the last operation; `make soak` all words of three and some of four, each with
every kind of cut of every write. Only distinct images that were opened count, over all parts together.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import make_small
from tests.support.crash_runs import ALL_LETTERS, CORE_LETTERS, Tally, crash_words, judge, words
from tests.support.judges import require

PARTS = 12
CORE_PARTS = 4
SOAK_PARTS = 288
PART_STATES = 400
SOAK_PART_STATES = 2000  # that no part before it has: fewer from part to part
SOAK_PART_GOAL = 3600  # with those that other parts have, too: 168 parts were a million states, half a minute each
JUDGED = 24


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of 64 blocks, data by fours."""
    make_small(monkeypatch)


@pytest.fixture(scope="session")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Tally:
    """One for all processes of a test run."""
    folder = tmp_path_factory.getbasetemp()
    return Tally((folder.parent if folder.name.startswith("popen-") else folder) / "crash-states")


def report(name: str, played: int, explorer: Explorer, tally: Tally, judged: int) -> int:
    new, in_all = tally.add(explorer.seen)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(explorer.kinds.items()))
    print(f"\n{name}: {played} workloads, {new} distinct states opened ({in_all} in all so far): {kinds};")
    print(f"{explorer.replayed} replayed, both thin_checks on {judged} of {len(explorer.to_judge)} metadata contents")
    return new


@pytest.mark.parametrize("part", range(PARTS))
def test_every_crash_of_one_or_two_operations(part: int, tmp_path: Path, tally: Tally) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(part)
    played = crash_words(explorer, [*words(ALL_LETTERS, 1), *words(ALL_LETTERS, 2)][part::PARTS])
    judged = judge(explorer, tmp_path, JUDGED)
    assert report(f"part {part}", played, explorer, tally, judged) >= PART_STATES


@pytest.mark.parametrize("part", range(CORE_PARTS))
def test_every_crash_of_three_core_operations(part: int, tmp_path: Path, tally: Tally) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(part)
    played = crash_words(explorer, words(CORE_LETTERS, 3)[part::CORE_PARTS])
    judged = judge(explorer, tmp_path, JUDGED)
    assert report(f"core part {part}", played, explorer, tally, judged) >= PART_STATES


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(SOAK_PARTS))
def test_every_crash_of_three_operations(part: int, tmp_path: Path, tally: Tally) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(part, thorough=True)
    played = crash_words(explorer, words(ALL_LETTERS, 3)[part::SOAK_PARTS], nested=part % 24 == 0)
    chance = random.Random(part)
    while explorer.opened_count < SOAK_PART_GOAL:
        played += crash_words(explorer, ["".join(chance.choices(ALL_LETTERS, k=4))])
    judged = judge(explorer, tmp_path, None)
    assert report(f"part {part}", played, explorer, tally, judged) >= SOAK_PART_STATES
