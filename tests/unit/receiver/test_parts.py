"""The pure parts of the receiver: ranges, steps, room, configuration, status."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from receiver.config import TEMPLATE, config_of, load_config
from receiver.errors import RoomError
from receiver.facts import Activity, Patience, Progress
from receiver.follow import retry_delay_s
from receiver.room import blocks_needed, require_room, switch_limit
from receiver.runs import BlockRuns
from receiver.status import Standing, lines_of, report
from receiver.steps import parts_of
from replicator.errors import NotFoundError, UsageError
from replicator.history.points import NS_PER_S
from replicator.history.protection import Failure
from replicator.history.retention import RetentionPolicy
from replicator.log.pace import beacon_interval_s
from replicator.pool.interface import Filling, PoolStatus
from replicator.units import GIB, MIB

NOW = 1_763_800_000 * NS_PER_S
STATUS = PoolStatus(UUID(int=1), 1, 0, 65536, 1000, 900, 1024, 1000, 0, 0, 0, 0.0)


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@pytest.mark.parametrize("seed", range(20))
def test_ranges_are_the_set_of_their_blocks(seed: int) -> None:
    """R1, against a set."""
    chance, runs, model = random.Random(seed), BlockRuns(), set()
    for _ in range(12):
        begin = chance.randrange(100)
        end = begin + chance.randrange(1, 12)
        runs.add(np.array([(begin, end)], dtype=np.uint64))
        model |= set(range(begin, end))
        rows = runs.rows
        assert {block for low, high in rows.tolist() for block in range(low, high)} == model
        assert (rows[1:, 0] > rows[:-1, 1]).all()
        assert runs.holds(np.arange(120, dtype=np.uint64)).tolist() == [block in model for block in range(120)]


def test_a_step_is_cut_into_parts_that_do_the_same() -> None:
    """C1: nothing is lost, nothing is larger than it may be, unmapping comes first."""
    whole = Filling(7, words(*range(10)), words(*range(100, 110)), np.array([(20, 30), (40, 41), (50, 60)], np.uint64))
    parts = parts_of(whole, 4)
    assert all(len(part.virtual_blocks) + 2 * len(part.unmapped) <= 4 for part in parts)
    assert np.concatenate([part.virtual_blocks for part in parts]).tolist() == list(range(10))
    assert np.concatenate([part.unmapped for part in parts]).tolist() == whole.unmapped.tolist()
    first_mapping = next(i for i, part in enumerate(parts) if len(part.virtual_blocks))
    assert not any(len(part.unmapped) for part in parts[first_mapping:])
    assert parts_of(whole, 16) == [whole] and parts_of(Filling(7), 1)


def test_room() -> None:
    assert blocks_needed(10, GIB, 65536) == 11
    assert blocks_needed(1 << 40, GIB, MIB) == 1024
    assert require_room(STATUS, "vm", 1, 899, GIB) == 900
    with pytest.raises(RoomError, match="may need 901 data blocks, 900 are free"):
        require_room(STATUS, "vm", 1, 900, GIB)
    with pytest.raises(RoomError, match="metadata blocks") as caught:
        require_room(replace(STATUS, metadata_free_blocks=60), "vm", 1, 100, GIB)
    assert "--metadata" in (caught.value.mend or "") and caught.value.exit_code == 1
    assert switch_limit(replace(STATUS, metadata_free_blocks=0)) == 1
    assert 100 < switch_limit(STATUS) < 1000


def test_retries_double_and_end_at_half_a_minute() -> None:
    assert [retry_delay_s(attempt, 1.0) for attempt in (0, 1, 2, 20)] == [0.25, 0.5, 1.0, 30.0]
    assert retry_delay_s(3, 0.0) == 1.0


def test_the_template_is_a_configuration(tmp_path: Path) -> None:
    """As it stands, and with every comment taken away."""
    file = tmp_path / "receiver.toml"
    file.write_text(TEMPLATE)
    assert load_config(file).apply_commit_bytes == GIB
    lines = [line.removeprefix("# ") for line in TEMPLATE.splitlines() if not line.startswith("# Replicator")]
    file.write_text("\n".join(lines))
    config = load_config(file)
    assert config.volumes == ("vm1",) and config.retention == RetentionPolicy()
    assert config.effective()["socket_group"] == "replicator"


@pytest.mark.parametrize(
    ("log", "said", "silent_s"),
    [("/srv/l", None, 60), ("s3://bucket/x", None, 180), ("s3://bucket/x", "90s", 90), ("/srv/l", "5m", 300)],
)
def test_an_agent_is_silent_when_several_of_its_beacons_are_missing(log: str, said: str | None, silent_s: int) -> None:
    """By the kind of log: a bucket is told of it every 60 s (log/pace)."""
    tables = {"pool": "p", "log": log} | ({"silent_after": said} if said else {})
    found = config_of(tables)
    assert found.patience.silent_after_s == found.effective()["silent_after_s"] == silent_s
    assert silent_s > beacon_interval_s(log)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"pool": "p"}, "log is missing"),
        ({"pool": "p", "log": "l", "pol": 1}, "unknown key pol"),
        ({"pool": "p", "log": "l", "retention": {"daily": 1}}, "retention: unknown key daily"),
        ({"pool": "p", "log": "l", "retention": 3}, "expected a table"),
        ({"pool": "p", "log": "l", "apply_commit_bytes": "many"}, "apply_commit_bytes: 'many' is not a size"),
        ({"pool": "p", "log": "l", "apply_commit_bytes": "1KiB"}, "isn't between 1MiB and 1TiB"),
        ({"pool": "p", "log": "l", "volumes": "vm1"}, "volumes: expected a list"),
        ({"pool": "p", "log": "l", "max_volumes": True}, "max_volumes: expected a whole number"),
        ({"pool": "p", "log": "l", "silent_after": "0s"}, "silent_after isn't between"),
        ({"pool": "", "log": "l"}, "pool: expected a text"),
    ],
)
def test_bad_configurations_are_refused_by_name(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_of(tables)


def test_a_file_that_isnt_there_or_isnt_toml(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff = 1")
    with pytest.raises(UsageError, match="isn't TOML"):
        load_config(tmp_path / "bad.toml")


def standing(**changes: Any) -> Standing:
    return replace(Standing("/srv/p", "/srv/l", 7, 8, NOW, Patience(), RetentionPolicy(), {}), **changes)


def test_status_says_the_worst_first() -> None:
    fine = Progress(UUID(int=1), "a", number=5, newest_ns=NOW - NS_PER_S, complete_to_ns=NOW - NS_PER_S)
    wrong = Failure(NOW - 60 * NS_PER_S, "gap: expected event 7, found 9", "put it back")
    broken = replace(fine, volume=UUID(int=2), name="b", activity=Activity.STOPPED, failure=wrong)
    found = report([fine, broken], standing(), NOW, UTC)
    assert [each["volume"] for each in found["volumes"]] == ["b", "a"]
    assert found["severity"] == 2 and found["schema_version"] == 1 and found["pid"] == 7
    assert found["headline"].startswith("b STOPPED since") and "gap" in found["headline"]
    text = lines_of(found, UTC)
    assert "    mend: put it back" in text and any("a: UP TO DATE" in line for line in text)


def test_an_unreachable_log_is_an_alarm_only_once_it_is_late() -> None:
    away = Progress(
        UUID(int=1),
        "a",
        Activity.UNREACHABLE,
        newest_ns=NOW - NS_PER_S,
        complete_to_ns=NOW - NS_PER_S,
        failure=Failure(NOW - 10 * NS_PER_S, "log unreachable"),
    )
    assert report([away], standing(), NOW, UTC)["severity"] == 0
    assert report([away], standing(patience=Patience(60, 5)), NOW, UTC)["severity"] == 2


def test_a_stopped_agent_shows() -> None:
    """*Complete to* stands still, and status warns."""
    idle = Progress(UUID(int=1), "a", newest_ns=NOW - 90 * NS_PER_S, complete_to_ns=NOW - 70 * NS_PER_S)
    found = report([idle], standing(), NOW, UTC)
    assert found["volumes"][0]["state"] == "SILENT" and found["severity"] == 1
    assert found["volumes"][0]["behind_s"] == 70


def test_a_source_whose_clock_is_ahead_shows() -> None:
    """It would look up to date for as long, whatever happens to it."""
    ahead = Progress(UUID(int=1), "a", number=7, newest_ns=NOW + 7200 * NS_PER_S, complete_to_ns=NOW + 7200 * NS_PER_S)
    (note,) = report([ahead], standing(), NOW, UTC)["notes"]
    assert note.startswith("a: @7 is stamped 2 h ahead of this host's clock")
    near = replace(ahead, newest_ns=NOW + 30 * NS_PER_S)
    assert report([near], standing(), NOW, UTC)["notes"] == []


def test_an_empty_log_and_trouble_of_its_own() -> None:
    empty = report([], standing(), NOW, UTC)
    assert empty["severity"] == 1 and empty["headline"] == "NOTHING IS REPLICATED: the log /srv/l has no volumes yet"
    assert lines_of(empty, UTC) == [empty["headline"], f"  {empty['mend']}"] and "agent run" in empty["mend"]
    found = report([], standing(troubles=("the pool can't be reached: gone",)), NOW, UTC)
    assert found["severity"] == 1 and found["headline"].startswith("the pool can't")
