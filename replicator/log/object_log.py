"""The object log as a Log: streams of segments, catalogue, beacons and claims over any ObjectStore.

Trimming, failure table: `start` is written first, then segments below it are deleted, ascending, folder by folder.

    dies                          what is left
    before `start`                the old stream, whole
    after `start`                 the new start; names below it that nobody reads, removed by the next trim

Invariants
  Q1  `start` never goes down, and names the end of a segment that stood.
  Q2  The last segment is never trimmed, so the tail can always be found.
  Q3  What is deleted lies below `start` and below what receivers and the caller allow now (L10): a `start` that no
      trim wrote, which a stolen key may have left, deletes nothing by itself.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from uuid import UUID

from replicator.errors import ConflictError, NotFoundError
from replicator.events.beacon import Beacon, decode_beacon, encode_beacon
from replicator.events.record import RECORD_BYTES_MAX
from replicator.events.state import encode_state
from replicator.log import names
from replicator.log.directory import TEMPORARY, DirectoryStore
from replicator.log.discovery import found_registration, found_volume
from replicator.log.interface import Registration, VolumeEntry, trim_limit
from replicator.log.objects import ObjectStore
from replicator.log.reader import SegmentReader
from replicator.log.records import (
    encode_claim,
    encode_marker,
    encode_registration,
    require_marker,
)
from replicator.log.stream import SegmentStream
from replicator.log.writer import SegmentWriter


def directory_log(path: Path, *, create: bool = False) -> ObjectLog:
    """The log in the directory `path`; `create` makes it (not its parent) where nothing is."""
    if create and path.parent.is_dir():
        path.mkdir(exist_ok=True)
    if not path.is_dir():
        raise NotFoundError(f"there is no log directory {path}")
    store = DirectoryStore(path)
    if create:
        store.settle_root()
    return ObjectLog(store, create=create)


class ObjectLog:
    """A Log over an ObjectStore."""

    def __init__(self, store: ObjectStore, *, create: bool = False) -> None:
        self._store = store
        marker = store.get(names.MARKER, RECORD_BYTES_MAX)
        if marker is None and create:
            marker = self._create()
        if marker is None:
            raise NotFoundError(f"{store.name} is not a log: it has no {names.MARKER}")
        require_marker(marker, f"{store.name}/{names.MARKER}")

    def _create(self) -> bytes:
        others = [name for name in self._store.children("") if name not in (names.MARKER, TEMPORARY)]
        if others:
            raise ConflictError(
                f"{self._store.name} holds other things: {sorted(others)[:3]}", mend="give an empty one"
            )
        self._store.put_if_absent(names.MARKER, encode_marker())
        self._store.settle(names.MARKER)
        return self._store.get(names.MARKER, RECORD_BYTES_MAX) or b""

    @property
    def name(self) -> str:
        """How messages name it."""
        return self._store.name

    def volumes(self) -> list[VolumeEntry]:
        """The catalogue, by name and UUID."""
        entries = []
        for volume in names.uuids_in(self._store.children(names.CATALOGUE)):
            name = names.catalogue_name(volume)
            read = partial(self._store.get, name, RECORD_BYTES_MAX)
            entry = found_volume(self, volume, read, f"{self._store.name}/{name}")
            if entry is not None:
                entries.append(entry)
        return sorted(entries, key=lambda entry: (entry.name, entry.volume))

    def timelines(self, volume: UUID) -> list[int]:
        """The timelines of `volume`, ascending."""
        return names.timelines_in(self._store.children(str(volume)))

    def claim_timeline(self, volume: UUID, timeline: int, host: str) -> bool:
        """Take the number of a new timeline."""
        return self._store.put_if_absent(names.claim_name(volume, timeline), encode_claim(host))

    def writer(self, volume: UUID, timeline: int) -> SegmentWriter:
        """A writer at the stream's end."""
        return SegmentWriter(self._stream(volume, timeline))

    def reader(self, volume: UUID, timeline: int) -> SegmentReader:
        """A reader."""
        return SegmentReader(self._stream(volume, timeline))

    def read_beacon(self, volume: UUID) -> Beacon | None:
        """The volume's last beacon."""
        name = names.beacon_name(volume)
        data = self._store.get(name, RECORD_BYTES_MAX)
        return None if data is None else decode_beacon(data, f"{self._store.name}/{name}")

    def write_beacon(self, beacon: Beacon) -> None:
        """Replace the volume's beacon."""
        self._store.put(names.beacon_name(beacon.volume), encode_beacon(beacon))

    def register(self, registration: Registration) -> None:
        """Replace what this receiver said of this volume."""
        name = names.registration_name(registration.volume, registration.receiver)
        self._store.put(name, encode_registration(registration))

    def registrations(self, volume: UUID) -> list[Registration]:
        """What the volume's receivers said last, by name and UUID."""
        found = []
        for receiver in names.uuids_in(self._store.children(names.receivers_prefix(volume))):
            name = names.registration_name(volume, receiver)
            read = partial(self._store.get, name, RECORD_BYTES_MAX)
            registration = found_registration(volume, receiver, read, f"{self._store.name}/{name}")
            if registration is not None:
                found.append(registration)
        return sorted(found, key=lambda registration: (registration.name, registration.receiver))

    def forget(self, volume: UUID, receiver: UUID) -> bool:
        """Strike a receiver off."""
        name = names.registration_name(volume, receiver)
        stood = self._store.size(name) is not None
        self._store.delete(name)
        return stood

    def trim(self, volume: UUID, timeline: int, below_sequence: int) -> int:
        """Remove the segments that end below `below_sequence`; the first sequence number that is kept."""
        stream = self._stream(volume, timeline)
        kept = stream.start().sequence + 1
        below_sequence = trim_limit(self.registrations(volume), timeline, below_sequence)
        last = stream.last_first()
        holder = stream.holder_of(min(below_sequence, last)) if last is not None else None
        if holder is not None and holder > kept:
            self._store.put(names.start_name(volume, timeline), encode_state(stream.state_before(holder)))
            kept = holder
        self._delete_below(stream, min(kept, holder or 0))  # Q3
        return kept

    def close(self) -> None:
        """Nothing is held."""

    def _stream(self, volume: UUID, timeline: int) -> SegmentStream:
        return SegmentStream(self._store, volume, timeline)

    def _delete_below(self, stream: SegmentStream, kept: int) -> None:
        """Delete the segments that begin below `kept`, where one begins, ascending."""
        for folder in stream.folders():
            if folder > names.folder_of(kept):
                return
            firsts = stream.firsts_in(folder)
            for first in firsts:
                if first < kept:
                    self._store.delete(stream.name_of(first))
            if folder < names.folder_of(kept):
                self._store.drop_folder(names.folder_name(stream.volume, stream.timeline, folder))
