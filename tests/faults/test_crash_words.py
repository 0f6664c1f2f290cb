"""Single workloads with every kind of power cut of every write: what the mutants of the engine are killed by, by name.

Each word is a story in which one rule of the engine decides (see tests.support.crash_workloads for the letters).
"""

from __future__ import annotations

import pytest

from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import make_small
from tests.support.crash_runs import crash_words

STORIES = {
    "a flush": "sf",
    "an overwrite in place, flushed": "of",
    "two flushes, one behind the other": "sfbf",
    "a write and a trim of it": "sdf",
    "a trim, a write behind it, and a flush": "dsf",
    "a provisioned block around which nothing old may show": "nf",
    "writes while a flush is under way": "sm",
    "writes while a cut is under way": "sg",
    "a write after a cut": "sco",
    "a shared leaf is copied": "cs",
    "a deletion, and writes while it is committed": "E",
    "a freed metadata block is the next to be given": "srf",
    "what a snapshot let go is written": "cDo",
    "an applied transaction": "sA",
    "a rollback": "sR",
    "a shorter volume grows again": "SG",
    "a held root, and changes behind it": "hsf",
}


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of 64 blocks, data by fours."""
    make_small(monkeypatch)


@pytest.mark.parametrize("story", STORIES)
def test_every_crash_of(story: str) -> None:
    explorer = Explorer(thorough=True)
    assert crash_words(explorer, [STORIES[story]]) == 1
    print(f"\n{STORIES[story]!r}: {explorer.opened_count} distinct states")


@pytest.mark.parametrize("word", ["sm", "dsf"])
def test_every_crash_of_a_recovery(word: str) -> None:
    explorer = Explorer()
    assert crash_words(explorer, [word], nested=True) == 1
