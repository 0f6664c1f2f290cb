"""pool/catalogue against a model: any order of stages, crashes before the superblock, purges and reopenings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import LoggedPoint, PoolIdentity, Setting
from replicator.pool.changes import Change, End, EndBelow, Put

V1 = UUID(int=1)
Model = dict[str, str]
Step = tuple[str, int, int]

step: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 4), st.integers(0, 99)),
    st.tuples(st.just("end"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("below"), st.integers(0, 9), st.just(0)),
)
NO_STEPS: st.SearchStrategy[list[Step]] = st.just([])
action: st.SearchStrategy[tuple[str, list[Step]]] = st.one_of(
    st.tuples(st.just("commit"), st.lists(step, max_size=5)),
    st.tuples(st.just("crash"), st.lists(step, max_size=5)),
    st.tuples(st.just("purge"), NO_STEPS),
    st.tuples(st.just("reopen"), NO_STEPS),
)


def _apply(model: Model, points: set[int], steps: list[Step]) -> list[Change]:
    """The changes of `steps` that can be made, which are made to the model too."""
    changes: list[Change] = []
    for kind, key, value in steps:
        if kind == "put":
            changes += [Put(Setting(str(key), str(value))), Put(LoggedPoint(V1, 1, key + 1, value, 0, 0))]
            model[str(key)] = str(value)
            points.add(key + 1)
        elif kind == "end" and model.pop(str(key), None) is not None:
            changes.append(End(Setting, (str(key),)))
        elif kind == "below":
            changes.append(EndBelow(LoggedPoint, (V1, 1), key))
            points -= {each for each in points if each < key}
    return changes


def _check(catalogue: Catalogue, at_id: int, model: Model, points: set[int]) -> None:
    view = catalogue.view(at_id)
    assert {name: view.setting(name) for (name,) in view.rows[Setting]} == model
    assert {each.number for each in catalogue.points(at_id, V1, 100)} == points


@given(st.lists(action, max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_view_is_what_was_committed(actions: list[tuple[str, list[Step]]]) -> None:
    """G1, G3, G5, M1, W1: all views that haven't been purged, after every action."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        catalogue = Catalogue.create(path, PoolIdentity(V1, 0), 0)
        history: dict[int, tuple[Model, set[int]]] = {0: ({}, set())}
        evolved = catalogue.view(0)
        for kind, steps in actions:
            superblock = max(history)
            model, points = dict(history[superblock][0]), set(history[superblock][1])
            if kind in ("commit", "crash"):
                changes = _apply(model, points, steps)
                catalogue.stage(superblock + 1, changes)
                if kind == "commit":
                    history[superblock + 1] = (model, points)
                    evolved = evolved.after(changes, superblock + 1)
            if kind == "purge":
                catalogue.purge(superblock)
                history = {superblock: history[superblock]}
            if kind in ("crash", "reopen"):
                catalogue.close()
                catalogue = Catalogue(path)
                catalogue.discard_beyond(superblock)
            for at_id, (expected, numbers) in history.items():
                _check(catalogue, at_id, expected, numbers)
            assert evolved == catalogue.view(max(history))
        catalogue.check()
        catalogue.close()
