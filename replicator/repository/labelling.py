"""Labels from the command line: a labelled cut where no agent runs, and a label for a point that a pool remembers.

Asked by `replicator points`. A running agent makes labelled cuts itself; a replica's labels are its catalogue's own.

    dies …                    on disk                                          what follows
    before the cut's switch   nothing                                          -
    after it                  target, Prepared and Cut rows, in one switch     the next agent publishes the transaction,
                                                                               as one that was interrupted before its
                                                                               first event
    before the label's switch nothing                                          -

Failures: ConflictError (a cut waits already, the label is taken), NotFoundError.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from replicator.errors import ConflictError, NotFoundError
from replicator.history.points import RestorePoint
from replicator.pool.catalogue_schema import LoggedPoint, Prepared, Purpose, Role, Snapshot, Volume
from replicator.pool.changes import Change, Put
from replicator.pool.interface import CutMade, CutRequest, Pool, Switch
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import switched
from replicator.repository.labels import valid_labels


def cut_labelled(pool: Pool, volume: str, label: str, cut_id: UUID, transaction: UUID) -> tuple[Volume, CutMade]:
    """A cut of the volume that the next agent publishes as its next transaction, with `label`."""
    view = pool.view()
    row = view.volume(volume)
    if view.position(row.uuid, Role.APPLIED) is not None:
        raise ConflictError(
            f"{row.name} is a replica: it changes only by what it receives", mend="create the point at its source"
        )
    if view.prepared_of(row.uuid) is not None:
        raise ConflictError(
            f"an earlier cut of {row.name} isn't published yet",
            mend="publish it: replicator agent publish POOL --log LOG",
        )
    position = view.position(row.uuid, Role.PUBLISHED)
    timeline, number = (position.timeline, position.number + 1) if position else (1, 1)
    prepared = Prepared(row.uuid, timeline, number, transaction, _base_of(view, row), 0, 0, 0)
    request = CutRequest(cut_id, (row.uuid,), Purpose.TARGET, (label,), prepared=(prepared,))
    return row, pool.cut(request)


def _base_of(view: CatalogueView, volume: Volume) -> int | None:
    """The snapshot that equals the last published transaction; None where there was none."""
    position = view.position(volume.uuid, Role.PUBLISHED)
    if position is None:
        return None
    for each in view.snapshots_of(volume.uuid):
        if (each.number, each.digest) == (position.number, position.digest):
            return each.dev_id
    return None  # let go of to make room: the agent finds the transaction by comparing hashes


def label_point(pool: Pool, point: RestorePoint, label: str) -> None:
    """Give a point that the pool remembers one label more, whatever else is switched meanwhile."""

    def plan(view: CatalogueView) -> tuple[Switch, None]:
        held: list[Snapshot | LoggedPoint] = [
            *view.snapshots_of(point.volume, Purpose.POINT),
            *pool.points(point.volume, -1),
        ]
        changes: list[Change] = [
            Put(replace(row, labels=valid_labels((*row.labels, label))))
            for row in held
            if (row.timeline, row.number) == (point.timeline, point.number)
        ]
        if not changes:
            raise NotFoundError(
                f"this pool doesn't remember {point.describe()}: only its log has it",
                mend="label it in a replica's pool; or label a new one as it is cut: replicator points create",
            )
        return Switch(changes=tuple(changes)), None

    switched(pool, plan)
