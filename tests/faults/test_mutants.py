"""The mutation gate: each seeded bug of the engine is found by the test that its patch names (support/mutants)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from tests.support.mutants import Mutant, Outcome, apply, copy_tree, read_mutant, run_tests

FOLDER = Path(__file__).parent / "mutants"
MUTANTS = [read_mutant(path) for path in sorted(FOLDER.glob("*.patch"))]
LEAST = 16
LIMIT_S = 120.0  # most take two or three seconds on an idle machine
HANG_S = 40.0  # a bug may also make its test hang, by chance: that proves nothing, and it is run again
TRIES = 4
GROUPS = 4


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= LEAST
    assert all(mutant.hunks and mutant.what for mutant in MUTANTS)


def run_until_it_ends(tree: Path, test: str) -> Outcome:
    """The outcome of the first run that doesn't hang."""
    for _ in range(TRIES - 1):
        with suppress(TimeoutExpired):
            return run_tests(tree, [test], HANG_S)
    return run_tests(tree, [test], LIMIT_S)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    copy_tree(tmp_path)
    apply(mutant, tmp_path)
    outcome = run_until_it_ends(tmp_path, mutant.killed_by)
    assert outcome.is_killed, f"{mutant.what}: not found by {mutant.killed_by}\n{outcome.output[-3000:]}"
    print(f"\n{mutant.name} ({mutant.promise}): {outcome.messages[0].splitlines()[0][:160]}")


@pytest.mark.parametrize("group", range(GROUPS))
def test_without_a_mutant_the_same_tests_pass(group: int, tmp_path: Path) -> None:
    tests = sorted({mutant.killed_by for mutant in MUTANTS})[group::GROUPS]
    copy_tree(tmp_path)
    outcome = run_tests(tmp_path, tests, 2 * LIMIT_S)
    clean = (outcome.failed, outcome.errors, outcome.skipped) == (0, 0, 0)
    assert clean and outcome.ran >= len(tests), outcome.output[-3000:]
