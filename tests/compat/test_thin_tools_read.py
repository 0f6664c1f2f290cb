"""The thin tools agree with our readers: thin_dump, thin_delta, thin_check and thin_restore, of both engines."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.thin.check import check
from replicator.thin.dump import dump
from replicator.thin.report import FindingKind, Severity
from replicator.thin.view import PoolView
from tests.support import judges
from tests.support.damage import HARMLESS, ROWS
from tests.support.golden import KernelPool
from tests.support.judges import ENGINES, Engine, Verdict
from tests.support.thinpools import Patient, Run, canonical_xml, make_pool, model, parse_thin_delta
from tests.unit.thin.test_diff import runs_of

AIO_TRIES = 50

pytestmark = pytest.mark.usefixtures("thin_judges")


def dump_of(path: Path, *, held: bool = False) -> str:
    with FileDevice(path, read_only=True) as device:
        return "".join(dump(PoolView.held(device) if held else PoolView.live(device)))


@pytest.mark.parametrize("seed", range(4))
def test_the_image_generator_writes_what_both_thin_checks_accept(tmp_path: Path, seed: int) -> None:
    make_pool(tmp_path / "metadata", seed)
    judges.assert_clean(tmp_path / "metadata")


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_dump_is_thin_dump(tmp_path: Path, kernel_pool_a: KernelPool, engine: Engine, held: bool) -> None:
    make_pool(tmp_path / "made")
    for path in (kernel_pool_a.metadata, tmp_path / "made"):
        theirs = judges.thin_tool(engine, "thin_dump").run(*(["-m"] if held else []), path).stdout
        assert canonical_xml(dump_of(path, held=held)) == canonical_xml(theirs)
        if engine == "cpp":
            assert dump_of(path, held=held).split() == theirs.split()


def delta(engine: Engine, path: Path, base: int, target: int) -> list[Run]:
    return parse_thin_delta(judges.thin_tool(engine, "thin_delta").run("--snap1", base, "--snap2", target, path).stdout)


@pytest.mark.parametrize("engine", ENGINES)
def test_diff_is_thin_delta(tmp_path: Path, kernel_pool_a: KernelPool, engine: Engine) -> None:
    make_pool(tmp_path / "made", 5)
    for path in (kernel_pool_a.metadata, tmp_path / "made"):
        with FileDevice(path, read_only=True) as device:
            view = PoolView.live(device)
            for base, target in list(permutations(view.devices(), 2))[::3]:
                expected = delta(engine, path, base.dev_id, target.dev_id)
                assert runs_of(view, base.root, target.root) == expected, (base.dev_id, target.dev_id)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_thin_restore_makes_of_our_dump(tmp_path: Path, engine: Engine) -> None:
    """The XML is taken, the result is clean for us, and maps the same (0.9.0 may count one block too many)."""
    make_pool(tmp_path / "made")
    (tmp_path / "xml").write_text(dump_of(tmp_path / "made"))
    (tmp_path / "restored").write_bytes(bytes(16 << 20))
    judges.thin_tool(engine, "thin_restore").run("-i", tmp_path / "xml", "-o", tmp_path / "restored")
    with FileDevice(tmp_path / "restored", read_only=True) as new, FileDevice(tmp_path / "made", read_only=True) as old:
        report = check(new)
        allowed = {(Severity.WARNING, FindingKind.NR_ALLOCATED)} if engine == "cpp" else set()
        assert report.totals.keys() <= allowed, report.findings
        ours, theirs = PoolView.live(old), PoolView.live(new)
        ids = [entry.dev_id for entry in ours.devices()]
        assert ids == [entry.dev_id for entry in theirs.devices()]
        assert all(model(ours, dev_id) == model(theirs, dev_id) for dev_id in ids)


def answer(engine: Engine, path: Path) -> Verdict:
    """A thin_check's verdict; 0.9.0 gives none while other programs use up the machine's asynchronous I/O contexts."""
    for _ in range(AIO_TRIES):
        verdict = judges.check_one(engine, path)
        if "io_setup failed" not in verdict.output:
            break
    return verdict


def test_what_a_thin_check_refuses_ours_never_lets_pass(tmp_path: Path) -> None:
    """Each damage of the table, shown to both: they refuse what the table says, and ours is never more lenient."""
    make_pool(tmp_path / "sound")
    paths = []
    rows = [(row.name, row.hand, row.refused.split()) for row in ROWS] + [(name, hand, []) for name, hand in HARMLESS]
    for number, (_, hand, _) in enumerate(rows):
        paths.append(tmp_path / f"damage{number}")
        shutil.copy(tmp_path / "sound", paths[-1])
        hand(Patient(paths[-1]))
    with ThreadPoolExecutor(8) as pool:
        jobs = [(engine, path) for path in paths for engine in ENGINES]
        verdicts = list(pool.map(lambda job: answer(*job), jobs))
    wrong = []
    for number, (name, _, refused) in enumerate(rows):
        refusals = [verdict for verdict in verdicts[2 * number : 2 * number + 2] if not verdict.clean]
        theirs = [verdict.engine for verdict in refusals]
        with FileDevice(paths[number], read_only=True) as device:
            ours = check(device)
        if theirs != refused or (theirs and ours.clean):
            wrong.append((name, refused, ours.findings[:2], [(verdict.engine, verdict.output) for verdict in refusals]))
        paths[number].unlink()
    assert not wrong, "\n".join(map(str, wrong))
