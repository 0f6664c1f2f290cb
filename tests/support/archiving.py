"""An archiver as tests want one: registered under a UUID of theirs, with time that they drive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from replicator.log.interface import Log
from replicator.repository.archive import Archiver
from replicator.repository.archive_registration import ArchiveRegistration
from tests.support.manual_waiter import ManualWaiter

RECEIVER = UUID(int=9)


def archiver(
    source: Log,
    target: Log,
    *,
    waiter: ManualWaiter | None = None,
    names: Sequence[str] = (),
    receiver: UUID = RECEIVER,
    is_stopping: Callable[[], bool] = lambda: False,
    beat: Callable[[], None] = lambda: None,
) -> Archiver:
    """Of `source` into `target`."""
    waiter = waiter or ManualWaiter()
    registration = ArchiveRegistration(source, receiver, "archive", waiter, lambda: 7)
    return Archiver(source, target, waiter, registration, names, is_stopping, beat)
