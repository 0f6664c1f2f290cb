"""What the log still says of an agent that doesn't run: up to when each volume was found equal, and its receivers.

For `agent status` where nobody answers: the catalogue knows the last cut that changed something, the beacon knows until
when nothing did. Asked in a thread of its own, for a limited time: a log that hangs must not hide the rest.

Invariants
  L1  A beacon counts if it matches the log's tail, and that is the transaction that the pool published last.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from uuid import UUID

from replicator.errors import FormatError, ReplicatorError
from replicator.log.interface import Log, Registration
from replicator.log.opening import open_log
from replicator.pool.catalogue_schema import Position, Role
from replicator.pool.view import CatalogueView

PATIENCE_S = 5.0
"""How long the log is waited for: a person looks at the answer."""


@dataclass(frozen=True, slots=True)
class LastWord:
    """Of one volume; `equal_until_ns` None: nothing is known beyond the catalogue."""

    equal_until_ns: int | None = None
    receivers: tuple[Registration, ...] = ()


def last_words(view: CatalogueView, url: str | None, within_s: float = PATIENCE_S) -> Mapping[UUID, LastWord]:
    """By volume, what the log said within that time; a log that is away says nothing."""
    found: dict[UUID, LastWord] = {}
    positions = [each for row in view.volumes if (each := view.position(row.uuid, Role.PUBLISHED)) is not None]
    if not url or not positions:
        return found

    def ask() -> None:
        with suppress(ReplicatorError, OSError), closing(open_log(url)) as log:
            for position in positions:
                found[position.volume] = LastWord()
                with suppress(FormatError):  # a damaged one hides no other volume's
                    found[position.volume] = LastWord(receivers=tuple(log.registrations(position.volume)))
                found[position.volume] = LastWord(_equal_until(log, position), found[position.volume].receivers)

    asking = threading.Thread(target=ask, name="last words", daemon=True)
    asking.start()
    asking.join(within_s)
    return dict(found)


def _equal_until(log: Log, position: Position) -> int | None:
    """L1."""
    tail, beacon = log.reader(position.volume, position.timeline).tail(), log.read_beacon(position.volume)
    committed = tail.committed
    if beacon is None or committed is None or not beacon.matches(tail):
        return None
    same = (committed.number, committed.digest) == (position.number, position.digest)
    return beacon.equal_until_ns if same else None
