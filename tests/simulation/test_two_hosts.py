"""Two hosts and a log between them, whatever befalls them: each seed is a history of faults and disasters.

The agent and the receiver are the real ones, over real pools on disks in memory; tests.support.two_hosts_truth has the
promises that are checked on the way. A failing seed says how to run it alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.two_hosts import run_plan
from tests.support.two_hosts_disasters import DISASTERS, SHARPER
from tests.support.two_hosts_plan import Plan, Report
from tests.support.two_hosts_seeds import run_seeds

ITEM_SEEDS = 100
ITEMS = 15
SOAK_ITEMS = 1000
DISASTER_SEEDS = 30  # with those of the items more than 2,000


def _told(report: Report) -> None:
    print(f"\n{report.text()}")
    assert report.counts["transactions applied"] > report.seeds
    assert sum(report.faults.values()) > report.seeds / 2


@pytest.mark.parametrize("item", range(ITEMS))
def test_every_seed_ends_exact_or_explained(item: int, tmp_path: Path) -> None:
    _told(run_seeds(range(item * ITEM_SEEDS, (item + 1) * ITEM_SEEDS), tmp_path))


@pytest.mark.parametrize("disaster", [*DISASTERS, *SHARPER, "none"])
def test_every_disaster_by_itself(disaster: str, tmp_path: Path) -> None:
    disasters = () if disaster == "none" else (disaster,)
    _told(run_seeds(range(10_000_000, 10_000_000 + DISASTER_SEEDS), tmp_path, disasters))


def test_what_is_sent_again_as_it_was_is_the_transaction_that_replicas_hold(tmp_path: Path) -> None:
    """T7: the log loses its end, and gets the same transaction again, event for event."""
    report = run_plan(replace(Plan.of(10_000_010, ("log-loses-end",)), steps=4), tmp_path)
    assert report.endings == {"converged": 2, "published": 1}


@pytest.mark.soak
@pytest.mark.parametrize("item", range(ITEMS, ITEMS + SOAK_ITEMS))
def test_many_seeds_end_exact_or_explained(item: int, tmp_path: Path) -> None:
    _told(run_seeds(range(item * ITEM_SEEDS, (item + 1) * ITEM_SEEDS), tmp_path))
