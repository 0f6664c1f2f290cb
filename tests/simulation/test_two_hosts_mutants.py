"""The mutation gate of the simulation of two hosts: each seeded bug of agent, receiver or log is found by its seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutants import Mutant, apply, copy_tree, read_mutant, run_tests

FOLDER = Path(__file__).parent / "mutants"
MUTANTS = [read_mutant(path) for path in sorted(FOLDER.glob("*.patch"))]
LEAST = 10
LIMIT_S = 120.0  # most take five seconds on an idle machine


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= LEAST
    assert all(mutant.hunks and mutant.what for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    copy_tree(tmp_path)
    apply(mutant, tmp_path)
    outcome = run_tests(tmp_path, [mutant.killed_by], LIMIT_S)
    assert outcome.is_killed, f"{mutant.what}: not found by {mutant.killed_by}\n{outcome.output[-3000:]}"
    print(f"\n{mutant.name} ({mutant.promise}): {outcome.messages[0].splitlines()[0][:200]}")
