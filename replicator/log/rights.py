"""What the key of a client may write in a log that is served to it. Pure.

    key           a new name                        replace (put)           delete               folders
    ALL           all                               all                     all                  all
    APPEND        all but `start`, registrations    beacons, catalogue      nothing              none
    FOLLOW        registrations                     registrations           registrations        none

All may read and list. APPEND is a source host's: who steals it erases nothing, and can't say for a receiver what a
trim may delete; beacons, entries and what it adds may stop readers. FOLLOW is a replica host's: who steals it can't
write history, but may speak for every receiver.
"""

from __future__ import annotations

import enum

from replicator.errors import ConflictError
from replicator.log import grammar


class Rights(enum.Enum):
    """Of one key; the value is what it may only do."""

    ALL = "do everything"
    APPEND = "append"
    FOLLOW = "follow"

    def require_new(self, name: str) -> None:
        """Raise ConflictError where an object of that name isn't this key's to make."""
        said_by_others = grammar.is_start(name) or grammar.is_registration(name)
        if (self is Rights.APPEND and said_by_others) or (self is Rights.FOLLOW and not grammar.is_registration(name)):
            raise self._refused(f"write {name}")

    def require_replace(self, name: str) -> None:
        """As `require_new`, for one that may stand already."""
        self.require_new(name)
        if self is Rights.APPEND and not grammar.is_publishers(name):
            raise self._refused(f"replace {name}")

    def require_delete(self, name: str) -> None:
        """As `require_new`, for the end of one."""
        if self is Rights.APPEND or (self is Rights.FOLLOW and not grammar.is_registration(name)):
            raise self._refused(f"delete {name}")

    def require_folders(self, prefix: str) -> None:
        """As `require_new`, for the removal of an empty folder."""
        if self is not Rights.ALL:
            raise self._refused(f"remove {prefix}")

    def require_sweep(self, prefix: str) -> None:
        """As `require_new`, for the removal of what dead writers left."""
        if not self.publishes:
            raise self._refused(f"sweep {prefix}")

    @property
    def publishes(self) -> bool:
        """Whether it is a publisher's: it makes a log where none is, and sweeps what dead writers left."""
        return self is not Rights.FOLLOW

    def _refused(self, what: str) -> ConflictError:
        mend = "its forced command says so: --append-only is for a source host, --follow-only for a replica host"
        return ConflictError(f"this key may only {self.value}: it may not {what}", mend=f"use another key; {mend}")
