"""The diff against the plainest model, on trees that share, were split, joined and discarded, and on hostile ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator.blockdev.file import FileDevice
from replicator.errors import FormatError
from replicator.thin import diff as subject
from replicator.thin.diff import KIND_NAMES, diff, diff_blocks
from replicator.thin.leafpairs import NO_BLOCK
from replicator.thin.mapping import pack_many
from replicator.thin.view import PoolView
from tests.support.damage import ROWS, Damage
from tests.support.thinimage import Thin, ThinImage
from tests.support.thinpools import BASE, EMPTY, SNAPSHOT, Patient, Run, make_pool, model, model_diff


def runs_of(view: PoolView, base: int, target: int) -> list[Run]:
    pieces = diff(view.store, base, target, data_nr_blocks=view.data_nr_blocks)
    return [
        (int(b), int(e), KIND_NAMES[k])
        for part in pieces
        for b, e, k in zip(part.begin, part.end, part.kind, strict=True)
    ]


@pytest.fixture(scope="module", params=[0, 1])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolView]:
    path = tmp_path_factory.mktemp("pool") / "metadata"
    make_pool(path, request.param)
    with FileDevice(path, read_only=True) as device:
        yield PoolView.live(device)


@pytest.mark.parametrize(("leaves", "branches"), [(256, 64), (3, 2), (1, 1)])
def test_every_pair_of_devices(pool: PoolView, monkeypatch: pytest.MonkeyPatch, leaves: int, branches: int) -> None:
    """However small the pieces are: cut ranges, and nodes that lie across a cut."""
    monkeypatch.setattr(subject, "_LEAVES", leaves)
    monkeypatch.setattr(subject, "_BRANCHES", branches)
    devices = pool.devices()
    models = {entry.dev_id: model(pool, entry.dev_id) for entry in devices}
    for base, target in permutations(devices, 2):
        expected = model_diff(models[base.dev_id], models[target.dev_id])
        assert runs_of(pool, base.root, target.root) == expected, (base.dev_id, target.dev_id)


def test_blocks_come_with_their_data_blocks_on_both_sides(pool: PoolView) -> None:
    for base, target in permutations(pool.devices(), 2):
        old, new = model(pool, base.dev_id), model(pool, target.dev_id)
        seen: dict[int, tuple[int | None, int | None]] = {}
        for part in diff_blocks(pool.store, base.root, target.root):
            assert len(part) and (not seen or int(part.virtual_blocks[0]) > max(seen))
            for key, one, other in zip(part.virtual_blocks, part.base, part.target, strict=True):
                seen[int(key)] = tuple(None if side == NO_BLOCK else int(side) for side in (one, other))  # type: ignore[assignment]  # two of them
            assert set(part.target_blocks().tolist()) <= set(new.values())
            assert set(part.base_blocks().tolist()) <= set(old.values())
        assert seen == {
            key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)
        }


def test_shared_nodes_are_not_read(tmp_path: Path) -> None:
    """One changed block of 64,000 costs the path to it on both sides, and the left edges, which tell the heights."""
    image = ThinImage(tmp_path / "metadata", 70_000)
    keys = np.arange(64_000, dtype=np.uint64)
    values = pack_many(keys, 0)
    base = image.mapping_tree(keys, values)
    values = values.copy()
    values[40_000] = pack_many(np.array([65_000], dtype=np.uint64), 1)[0]
    target = image.mapping_tree(keys, values, like=base)
    image.finish({1: Thin(base, 0, 0, 1), 2: Thin(target, 0, 1, 1)}, time=1)
    with FileDevice(tmp_path / "metadata", read_only=True) as device:
        view = PoolView.live(device)
        assert runs_of(view, base.root, base.root) == []
        assert view.store.blocks_read == 0
        assert runs_of(view, base.root, target.root) == [(40_000, 40_001, "changed")]
        assert len(base.levels) == 3 and view.store.blocks_read == 12


entries = st.dictionaries(st.integers(0, 3000), st.integers(0, 1500), max_size=1500)
stretches = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 700), st.integers(0, 2)), max_size=5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries, stretches, st.booleans(), st.sampled_from([84, 126, 252]))
def test_any_two_trees(
    tmp_path: Path, start: dict[int, int], changes: list[tuple[int, int, int]], shares: bool, fill: int
) -> None:
    after = dict(start)
    for begin, length, what in changes:
        for block in range(begin, begin + length):
            if what == 0:
                after.pop(block, None)
            elif what == 1 or block in after:
                after[block] = 2000 + block
    image = ThinImage(tmp_path / "metadata", 10_000)
    old_keys, new_keys = (np.array(sorted(side), dtype=np.uint64) for side in (start, after))
    old = image.mapping_tree(old_keys, pack_many(_blocks(start), 0), fill=fill)
    new = image.mapping_tree(new_keys, pack_many(_blocks(after), 0), like=old if shares else None, fill=252)
    image.finish({1: Thin(old), 2: Thin(new)})
    with FileDevice(tmp_path / "metadata", read_only=True) as device:
        view = PoolView.live(device)
        assert runs_of(view, old.root, new.root) == model_diff(start, after)
        assert runs_of(view, new.root, old.root) == model_diff(after, start)


def _blocks(mappings: dict[int, int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([mappings[key] for key in sorted(mappings)], dtype=np.uint64)


NOT_INSISTED_ON = ("leaf too empty", "child below the root's first key")
REFUSED = [
    row for row in ROWS if row.name.startswith(("node", "child", "leaf", "a node")) and row.name not in NOT_INSISTED_ON
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_damaged_nodes_are_refused(tmp_path: Path, row: Damage) -> None:
    make_pool(tmp_path / "metadata")
    root = Patient(tmp_path / "metadata").root_of(BASE)
    row.hand(Patient(tmp_path / "metadata"))
    with FileDevice(tmp_path / "metadata", read_only=True) as device:
        view = PoolView.live(device)
        empty = view.device(EMPTY).root
        for base, target in ((root, empty), (empty, root)):
            with pytest.raises(FormatError, match=r"metadata block|mapping tree"):
                list(diff(view.store, base, target))


def test_a_changed_block_beyond_the_data_device_is_refused(pool: PoolView) -> None:
    with pytest.raises(FormatError, match="data blocks below 10"):
        list(diff(pool.store, pool.device(BASE).root, pool.device(SNAPSHOT).root, data_nr_blocks=10))
