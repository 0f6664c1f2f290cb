"""Finding volumes and receivers: what the catalogue says, or the stream where its entry is damaged; who registered.

Any key that may publish may write any volume's entry, and the stream decides anyway. So a damaged entry, or one that
names another volume, hides no volume, and none of the others: it is told in the program's own log, and written
again at the next PublisherOpened (rolling, G3). A damaged registration says nothing of its receiver, and a trim that
passed it over might delete what that one hasn't got: it is damage, by the name under which it can be struck off.

Invariants
  F1  An entry is believed only under its own volume's name, a registration only under its own receiver's.
  F2  What is made from a stream has everything but the host, which only the catalogue keeps; no stream, no volume.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from replicator._buffer import Buffer
from replicator.errors import DamageError, FormatError
from replicator.events.state import Life
from replicator.log.interface import Log, Registration, VolumeEntry
from replicator.log.records import decode_entry, decode_registration

_LOG = logging.getLogger("replicator.log")


def entry_of(volume: UUID, data: Buffer, where: str) -> VolumeEntry:
    """The entry that `data` is; FormatError where it isn't this volume's (F1)."""
    entry = decode_entry(data, where)
    if entry.volume != volume:
        raise FormatError(where, f"the entry of volume {volume}", f"that of {entry.volume}")
    return entry


def found_volume(log: Log, volume: UUID, read: Callable[[], bytes | None], where: str) -> VolumeEntry | None:
    """The volume by its entry, or by its stream (F2); None where neither is there."""
    try:
        data = read()
        return None if data is None else entry_of(volume, data, where)
    except FormatError as error:
        _LOG.warning("a damaged catalogue entry is passed over: %s", error.message)
    return _by_stream(log, volume)


def found_registration(
    volume: UUID, receiver: UUID, read: Callable[[], bytes | None], where: str
) -> Registration | None:
    """What that receiver said of the volume; None where nothing stands. FormatError says how it is struck off."""
    try:
        data = read()
        found = None if data is None else decode_registration(data, where)
        if found is not None and (found.volume, found.receiver) != (volume, receiver):
            raise FormatError(where, f"receiver {receiver} of volume {volume}", f"{found.receiver} of {found.volume}")
    except FormatError as error:
        mend = f"strike it off: replicator receiver forget LOG VOLUME {receiver}; a receiver that runs registers again"
        raise FormatError(error.where, error.expected, error.found, mend=mend) from None
    return found


def _by_stream(log: Log, volume: UUID) -> VolumeEntry | None:
    for timeline in reversed(log.timelines(volume)):
        try:
            state = log.reader(volume, timeline).tail()
        except DamageError:
            continue
        if state.life is not Life.EMPTY:
            return VolumeEntry(volume, timeline, state.name, "", state.size_bytes, state.life is Life.DELETED)
    return None
