"""Our repair against both thin_repairs, on more than 40 kinds of damage: mapping by mapping, and never a wrong one."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from replicator.thin.repair_roots import Hints
from tests.support import repairs
from tests.support.damage import ROWS
from tests.support.judges import ENGINES, Engine, check_both
from tests.support.repairs import KINDS, Mappings, Repaired, right
from tests.support.thinpools import Patient, make_pool

AT_ONCE = 12  # the Rust tools sleep more than they work

pytestmark = pytest.mark.xdist_group("repairs")  # they share what the tools were asked once, for all kinds

DIFFERENT_ON_PURPOSE = {"data block out of range", "child below its parent's key", "one data block twice"}
"""Here the damage changed a mapping itself: what it says now isn't what the pool mapped."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One kind of damage: what we saved, what the others did, and which thin_checks found ours clean."""

    ours: Repaired
    theirs: dict[Engine, Mappings]
    clean: list[bool]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mappings]:
    path = tmp_path_factory.mktemp("sound") / "metadata"
    make_pool(path)
    return path, repairs.mappings_of(path)


@pytest.fixture(scope="module")
def trials(truth: tuple[Path, Mappings], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    folder = tmp_path_factory.mktemp("repairs")

    def run(numbered: tuple[int, str]) -> Trial:
        number, name = numbered
        damaged, target = folder / f"{number}", folder / f"{number}.repaired"
        shutil.copy(truth[0], damaged)
        KINDS[name](Patient(damaged))
        before = damaged.read_bytes()
        ours = repairs.repair(damaged, target)
        assert damaged.read_bytes() == before
        theirs = {engine: repairs.others_repair(engine, damaged, folder / f"{number}.{engine}") for engine in ENGINES}
        clean = [verdict.clean for verdict in check_both(target)]
        damaged.unlink()
        target.unlink()
        return Trial(ours, theirs, clean)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(KINDS, pool.map(run, enumerate(KINDS)), strict=True))


@pytest.mark.usefixtures("thin_judges")
@pytest.mark.parametrize("name", KINDS)
def test_we_save_at_least_as_much(name: str, trials: dict[str, Trial], truth: tuple[Path, Mappings]) -> None:
    trial, pool = trials[name], truth[1]
    assert all(trial.clean)
    for engine, theirs in trial.theirs.items():
        for dev_id, mapped in right(theirs, pool).items():
            missed = mapped.keys() - trial.ours.mappings.get(dev_id, {}).keys()
            assert not missed, f"{engine} saves {len(missed)} mappings of device {dev_id} that we don't"


@pytest.mark.usefixtures("thin_judges")
@pytest.mark.parametrize("name", [name for name in KINDS if name not in DIFFERENT_ON_PURPOSE])
def test_no_mapping_is_wrong(name: str, trials: dict[str, Trial], truth: tuple[Path, Mappings]) -> None:
    """R2; and what is missing is said, by device and range."""
    trial, pool = trials[name], truth[1]
    outcomes = {each.dev_id: each for each in trial.ours.salvage.devices}
    for dev_id, mapped in trial.ours.mappings.items():
        if dev_id in pool:
            assert right({dev_id: mapped}, pool)[dev_id] == mapped
    for dev_id, mapped in pool.items():
        missing = sorted(mapped.keys() - trial.ours.mappings.get(dev_id, {}).keys())
        ranges = outcomes[dev_id].lost
        assert outcomes[dev_id].whole == (not missing)
        assert all(any(first <= key <= last for first, last in ranges) for key in missing) or not outcomes[dev_id].saved


@pytest.mark.usefixtures("thin_judges")
def test_the_sums(trials: dict[str, Trial], truth: tuple[Path, Mappings]) -> None:
    """Over all kinds of damage."""
    whole = sum(map(len, truth[1].values()))
    print(f"\n{len(trials)} kinds of damage, {whole} mappings each:")
    sums: dict[str, int] = dict.fromkeys(("ours", *ENGINES), 0)
    for trial in trials.values():
        sums["ours"] += sum(map(len, right(trial.ours.mappings, truth[1]).values()))
        for engine, theirs in trial.theirs.items():
            sums[engine] += sum(map(len, right(theirs, truth[1]).values()))
    print(", ".join(f"{who} saves {100 * saved / (whole * len(trials)):.1f} %" for who, saved in sums.items()))
    assert all(sums["ours"] > sums[engine] for engine in ENGINES)


@pytest.mark.usefixtures("thin_judges")
def test_a_node_that_says_it_stands_elsewhere_is_not_trusted(truth: tuple[Path, Mappings], tmp_path: Path) -> None:
    """thin_repair 1.1 takes it. A right checksum over a wrong number is a write that went astray: another's content."""
    shutil.copy(truth[0], tmp_path / "m")
    next(row for row in ROWS if row.name == "node: wrong block number").hand(Patient(tmp_path / "m"))
    ours = repairs.repair(tmp_path / "m", tmp_path / "r")
    lost = [each for each in ours.salvage.devices if each.lost]
    assert [len(each.lost) for each in lost] == [1, 1]
    assert all(verdict.clean for verdict in check_both(tmp_path / "r"))


def test_without_any_superblock_the_block_size_must_be_said(truth: tuple[Path, Mappings], tmp_path: Path) -> None:
    shutil.copy(truth[0], tmp_path / "m")
    KINDS["superblock and its copy destroyed"](Patient(tmp_path / "m"))
    with pytest.raises(Exception, match="no superblock is left") as refused:
        repairs.repair(tmp_path / "m", tmp_path / "r", Hints())
    assert "--block-size" in str(getattr(refused.value, "mend", ""))
