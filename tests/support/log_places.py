"""Every kind of log that there is, empty, to be opened by several hosts at once; and how each of them loses its end.

object logs    the segments behind an event are removed from the store
Kafka          the topic is made anew and gets the events up to that one: a broker that came back with an older disk
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID, uuid4

from replicator.log import names
from replicator.log.interface import Appended, Log
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_names import entry_key, registration_key, stream_topic
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.opening import open_log
from tests.support import judges, kafka_broker
from tests.support.far_logs import FarServers
from tests.support.memory_objects import MemoryStore

KINDS = ("directory", "kafka", "memory", "s3", "ssh")
_TRIES = 200  # of making a topic whose predecessor is being deleted


def place(kind: str, folder: Path, servers: FarServers) -> Callable[[], Log]:
    """What opens an empty log of this kind, in `folder` where it has files."""
    if kind == "memory":
        store = MemoryStore()
        return lambda: ObjectLog(store, create=True)
    if kind == "directory":
        return lambda: directory_log(folder / "log", create=True)
    if kind == "kafka":
        judges.require("kafka")
        url = kafka_broker.shared().url(f"place-{uuid4().hex}")
    else:
        url = servers.s3_url(f"place/{uuid4().hex}") if kind == "s3" else servers.ssh_url(folder / "log")
    return lambda: open_log(url, create=True)


class Place:
    """One log, opened by as many hosts as ask; all are closed with `opened`."""

    def __init__(self, kind: str, folder: Path, servers: FarServers, opened: ExitStack) -> None:
        self.kind = kind
        self._open, self._opened = place(kind, folder, servers), opened

    def open(self) -> Log:
        """The log, as one more host has it."""
        return self._opened.enter_context(closing(self._open()))

    def write_entry(self, volume: UUID, data: bytes) -> None:
        """These bytes as the volume's catalogue entry."""
        log = self.open()
        if isinstance(log, KafkaLog):
            log._catalogue.put(entry_key(volume), data)
            return
        assert isinstance(log, ObjectLog)
        log._store.put(names.catalogue_name(volume), data)

    def write_registration(self, volume: UUID, receiver: UUID, data: bytes) -> None:
        """These bytes as the receiver's registration."""
        log = self.open()
        if isinstance(log, KafkaLog):
            log._receivers.put(registration_key(volume, receiver), data)
            return
        assert isinstance(log, ObjectLog)
        log._store.put(names.registration_name(volume, receiver), data)

    def lose_behind(self, volume: UUID, sequence: int) -> None:
        """Nothing of the volume's first timeline is left behind this event."""
        log = self.open()
        if isinstance(log, KafkaLog):
            _anew(log, volume, sequence)
            return
        assert isinstance(log, ObjectLog)
        folder = names.folder_name(volume, 1, 0)
        for first in names.sequences_in(log._store.children(folder), 0):
            if first > sequence:
                log._store.delete(names.segment_name(volume, 1, first))


def _anew(log: KafkaLog, volume: UUID, sequence: int) -> None:
    kept = list(log.reader(volume, 1).read(1))[:sequence]
    topic = stream_topic(log._address.prefix, volume, 1)
    with log._client._asked("deleting a topic") as admin:
        admin.delete_topics([topic])
    assert any(log.claim_timeline(volume, 1, "broker") for _ in range(_TRIES)), "the topic doesn't go"
    if kept:
        with log.writer(volume, 1) as writer:
            assert isinstance(writer.append(writer.state.link, kept), Appended)
