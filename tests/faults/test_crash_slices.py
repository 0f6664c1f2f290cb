"""Crashes while a device is deleted in slices: in each commit, between two, and while the next opening goes on.

At each state the device is whole in the metadata, with fewer mappings, and nobody can name it; the opening deletes it
to the end, and all else is as it was (P2, and the failure table of pool/deleting). What one slice frees is written by
others before the next one (P6). `make soak` has every kind of power cut of every write, behind every other operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import Base, make_small
from tests.support.crash_runs import ALL_LETTERS, crash_words, judge
from tests.support.crash_slices import SLICED, going_bases, held_opening, one_leaf_a_slice, sliced_base
from tests.support.judges import require

STATES = {"T": 60, "hT": 55, "TU": 75, "L": 80, "sTN": 150}  # at least so many, without the recoveries' own
NESTED = {"T": 250}
BESIDE = {"O": 300, "fsO": 330}  # chance orders L in two ways: 343 and 376 states from the pools of one, 431 and 459
SOAK_STATES = 100


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of 64 blocks, and a leaf in each commit."""
    make_small(monkeypatch)
    one_leaf_a_slice(monkeypatch)


def crash_slices(explorer: Explorer, word: str, *, nested: bool = False) -> int:
    """How many states of this word were opened; each has at least three commits."""
    assert crash_words(explorer, [word], nested=nested, base=sliced_base(), operations=SLICED) == 1
    return explorer.opened_count


@pytest.mark.parametrize("word", STATES)
def test_every_crash_of_a_deletion_in_slices(word: str) -> None:
    states = crash_slices(Explorer(len(word)), word)
    print(f"\n{word}: {states} distinct states")
    assert states >= STATES[word]


@pytest.mark.parametrize("word", NESTED)
def test_every_crash_of_an_opening_that_goes_on_deleting(word: str, tmp_path: Path) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(len(word))
    crash_slices(explorer, word, nested=True)
    nested = sum(count for kind, count in explorer.kinds.items() if kind.startswith("in recovery"))
    judged = judge(explorer, tmp_path, 16)
    print(f"\n{word}: {nested} distinct states after a crash in the opening, {explorer.opened_count} in all;")
    print(f"both thin_checks on {judged} of {len(explorer.to_judge)} metadata contents")
    assert nested >= NESTED[word]


def crash_beside(explorer: Explorer, word: str, bases: Sequence[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every crash of this word on each of these pools, whose opening waits for its "O"."""
    for base in bases:
        held_opening(monkeypatch)
        assert crash_words(explorer, [word], base=base, operations=SLICED) == 1
    print(f"\n{word}: {explorer.opened_count} distinct states, from {len(bases)} pools that were being deleted from")


@pytest.mark.parametrize("word", BESIDE)
def test_every_crash_of_writes_beside_an_opening_that_goes_on_deleting(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = Explorer(len(word))
    crash_beside(explorer, word, going_bases("L")[::5], monkeypatch)
    assert explorer.opened_count >= BESIDE[word]


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("deletion", ["T", "L"])
def test_every_crash_of_every_opening_that_goes_on_deleting(
    deletion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(thorough=True)
    for word in BESIDE:
        crash_beside(explorer, word, going_bases(deletion), monkeypatch)
    judge(explorer, tmp_path, None)
    assert explorer.opened_count >= SOAK_STATES


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("letter", [*ALL_LETTERS, "T"])
def test_every_crash_of_a_deletion_behind_each_operation(letter: str, tmp_path: Path) -> None:
    require("thin-cpp", "thin-rust")
    explorer = Explorer(thorough=True)
    for word in (f"{letter}T", f"{letter}L", f"T{letter}N"):
        crash_words(explorer, [word], nested=True, base=sliced_base(), operations=SLICED)
    judge(explorer, tmp_path, None)
    print(f"\n{letter}: {explorer.opened_count} distinct states")
    assert explorer.opened_count >= SOAK_STATES
