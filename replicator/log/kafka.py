"""The door to Kafka: the only module that knows kafka-python, and what it takes to trust it.

    Client      topics: made, listed, described, trimmed; makes the others
    Consumer    one partition, read_committed, by assign() and seek(): no consumer group
    Publisher   transactions under a transactional id: begin, send all, check each, commit
    Producer    single records for the compacted topics

What is kept away from those above (tried with 3.0.12, tests/faults/test_kafka_stalls.py):
  G1  "Commit with holes". A record whose time ran out fails its future, yet commit_transaction() commits the rest. So
      every future is looked at before a commit is asked for, and after any failure the producer is never used again.
  G2  "The wedge". A producer whose retried batch ran out of time never sends again. So nothing waits without a limit,
      and after any failure the producer is never used again.
  G3  commit_transaction() waits for ever, and close() doesn't end a producer that can't flush. So commits are begun and
      waited for with a limit, and an abandoned producer's sender is told to drop all, before it is closed.
  G4  send() bounds no memory. So a transaction is sent whole, at most what its caller holds, and waited for.
  G5  A connection that is refused leaves its socket to the collector, a thousand in a minute's outage. So it is closed.
  G6  A client that can't be made leaves its thread at work. So its network is ended; and brokers are probed before.

Each call raises, of what the library raises: FencedError, MissingTopicError, OffsetGoneError, DeniedError,
DamagedRecordError (after it was read a second time), else UnavailableError. A Consumer that raised is spent too.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from replicator.errors import UnavailableError
from replicator.log.kafka_address import KafkaAddress
from replicator.log.kafka_errors import (
    DamagedRecordError,
    DeniedError,
    FencedError,
    MissingTopicError,
    OffsetGoneError,
)
from replicator.log.kafka_names import STATE_HEADER, settings_for
from replicator.log.kafka_probe import probe
from replicator.log.kafka_records import Message, Record
from replicator.log.kafka_settings import (
    CLOSED_WHEN_REFUSED,
    DELIVERY_TIMES,
    READING,
    TRANSACTION_TIMES,
    client_options,
    producing,
)

with warnings.catch_warnings():  # it reads its own files by functions that Python 3.11 calls old
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.errors as faults  # type: ignore[import-untyped]  # kafka-python has no types
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.admin import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]  # kafka-python has no types
    from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]  # kafka-python has no types
    from kafka.net.inet import KafkaNetSocket  # type: ignore[import-untyped]  # kafka-python has no types

logging.getLogger("kafka").addHandler(logging.NullHandler())  # it tells each reconnection; we tell what came of it

_LATEST = -1  # for a time: the end
_SHORT_S = 0.005  # a poll that finds nothing but markers lasts as long as it may
_FENCED = (faults.ProducerFencedError, faults.InvalidProducerEpochError)
_FENCED_TEXTS = ("ProducerFenced", "InvalidProducerEpoch")


class _ClosedWhenRefused(KafkaNetSocket):  # type: ignore[misc]  # it has no types
    """G5: how the library makes connections, by its own way to replace that, a proxy's scheme."""

    SCHEMES = (CLOSED_WHEN_REFUSED,)

    async def sock_connect(self, net: object, sock: socket.socket, *place: object, **limits: object) -> object:
        """Connect `sock`, or close it."""
        try:
            return await super().sock_connect(net, sock, *place, **limits)
        except BaseException:
            sock.close()
            raise


@contextlib.contextmanager
def _typed(what: str) -> Iterator[None]:
    """What the library raises, as what it means."""
    try:
        yield
    except faults.KafkaError as error:
        reason = f"{what}: {str(error) or type(error).__name__}"
        if isinstance(error, _FENCED) or any(text in str(error) for text in _FENCED_TEXTS):
            slow = "or the broker gave our transaction up, as one that took too long"
            raise FencedError(f"{what}: another publisher took over, {slow}") from error
        if isinstance(error, faults.UnknownTopicOrPartitionError):
            raise MissingTopicError(f"{what}: there is no such topic") from error
        if isinstance(error, faults.OffsetOutOfRangeError | faults.LogTruncationError):
            raise OffsetGoneError(reason) from error
        if isinstance(error, faults.AuthorizationError):
            mend = "grant it: kafka-acls.sh --add …"
            raise DeniedError(
                f"{what}: the broker's access rules forbid it ({type(error).__name__})", mend=mend
            ) from error
        raise UnavailableError(reason) from error
    except OSError as error:
        raise UnavailableError(f"{what}: {error.strerror or error}") from error


def _made(kind: Callable[..., Any], options: dict[str, object]) -> Any:
    """A client of the library; where it can't be made, what it had begun is ended (G6)."""
    begun: list[Any] = []

    def network(**given: object) -> Any:
        begun.append(KafkaNetClient(**given))
        return begun[-1]

    try:
        return kind(kafka_client=network, **options)
    except BaseException:
        for each in begun:
            each.close()
        raise


class Client:
    """Topics, and what reads and writes them. From any thread."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._turn = threading.Lock()
        self._admin: KafkaAdminClient | None = None

    @property
    def timeout_s(self) -> float:
        """The time limit of one question."""
        return self._address.timeout_s

    def tool(self, name: str) -> str:
        """How Kafka's own tool is called, for a mend."""
        return f"kafka-{name}.sh --bootstrap-server {','.join(self._address.bootstrap)}"

    def consumer(self, topic: str) -> Consumer:
        """A consumer of a topic that is there."""
        return Consumer(self._probed(), topic, self.timeout_s)

    def publisher(self, transactional_id: str) -> Publisher:
        """A publisher; nobody is fenced before its `fence`."""
        return Publisher(self._probed(), transactional_id, self.timeout_s)

    def producer(self) -> Producer:
        """A producer for single records."""
        return Producer(self._probed(), self.timeout_s)

    def _probed(self) -> dict[str, object]:
        """What a client is told, once a broker answers: so that what is wrong is named, and soon."""
        probe(self._address)
        return client_options(self._address)

    def topics(self) -> list[str]:
        """The names of all topics that we may see."""
        with self._asked("listing topics") as admin:
            return [str(name) for name in admin.list_topics()]

    def has_topic(self, topic: str) -> bool:
        """Whether it is there."""
        with self._asked(f"topic {topic}") as admin:
            (found,) = admin.describe_topics([topic])
            code = found["error_code"]
            if code not in (0, faults.UnknownTopicOrPartitionError.errno):
                raise faults.for_code(code)()
            return not code

    def create_topic(self, topic: str, settings: dict[str, str]) -> bool:
        """Make it, with one partition; False if it was there. Of several at once exactly one gets True."""
        replicas = self._address.replicas
        configs = settings_for(settings, replicas)
        wanted = {"num_partitions": 1, "replication_factor": replicas, "configs": configs}
        with self._asked(f"making topic {topic}") as admin:
            try:
                admin.create_topics({topic: wanted}, timeout_ms=int(self.timeout_s * 1000))
            except faults.TopicAlreadyExistsError:
                return False
            admin.wait_for_topics([topic], timeout_ms=int(self.timeout_s * 1000))
            return True

    def topic_settings(self, topic: str) -> dict[str, str]:
        """All its settings, the broker's defaults among them."""
        with self._asked(f"the settings of topic {topic}") as admin:
            asked = ConfigResource(ConfigResourceType.TOPIC, topic)
            found = admin.describe_configs([asked], config_filter="all")
            settings = found["topic"][topic]
            if not settings:  # the library passes over that answer's error
                raise faults.TopicAuthorizationFailedError(topic)
            return {str(name): str(each["value"]) for name, each in settings.items()}

    def written_end(self, topic: str) -> int:
        """The offset behind the last record, of transactions that are still open too."""
        with self._asked(f"the end of topic {topic}") as admin:
            at, limit_ms = TopicPartition(topic, 0), int(self.timeout_s * 1000)
            return int(admin.list_partition_offsets({at: _LATEST}, timeout_ms=limit_ms)[at].offset)

    def delete_below(self, topic: str, offset: int) -> None:
        """Delete the records before `offset`, at once for readers."""
        with self._asked(f"trimming topic {topic}") as admin:
            admin.delete_records({TopicPartition(topic, 0): offset}, timeout_ms=int(self.timeout_s * 1000))

    def close(self) -> None:
        """Let go of the connection."""
        with self._turn:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    @contextlib.contextmanager
    def _asked(self, what: str) -> Iterator[KafkaAdminClient]:
        """The admin client, for one question; after an error it is made anew."""
        with self._turn:
            try:
                with _typed(what):
                    if self._admin is None:
                        self._admin = _made(KafkaAdminClient, self._probed())
                    yield self._admin
            except UnavailableError:
                admin, self._admin = self._admin, None
                if admin is not None:
                    with contextlib.suppress(faults.KafkaError, OSError):
                        admin.close()
                raise


class Consumer:
    """Partition 0 of one topic, committed records only. For one thread at a time."""

    def __init__(self, options: dict[str, object], topic: str, timeout_s: float) -> None:
        self.topic, self._timeout_s, self._at = topic, timeout_s, TopicPartition(topic, 0)
        self._what, self._options = f"reading topic {topic}", {**options, **READING}
        with _typed(self._what):
            self._connect()

    def _connect(self) -> None:
        self._consumer = _made(KafkaConsumer, self._options)
        self._consumer.assign([self._at])

    def bounds(self) -> tuple[int, int]:
        """The first offset that is kept, and the one behind the last that is committed or aborted."""
        with _typed(self._what):
            limit_ms = int(self._timeout_s * 1000)
            begin = self._consumer.beginning_offsets([self._at], timeout_ms=limit_ms)[self._at]
            return int(begin), self._end(limit_ms)

    def end(self) -> int:
        """The offset behind the last that is committed or aborted."""
        with _typed(self._what):
            return self._end(int(self._timeout_s * 1000))

    def _end(self, limit_ms: int) -> int:
        return int(self._consumer.end_offsets([self._at], timeout_ms=limit_ms)[self._at])

    def offset_since(self, timestamp_ms: int) -> int | None:
        """The first offset of a record that isn't older; None if all are."""
        with _typed(self._what):
            limit_ms = int(self._timeout_s * 1000)
            found = self._consumer.offsets_for_times({self._at: max(0, timestamp_ms)}, timeout_ms=limit_ms)[self._at]
            return None if found is None or found.offset < 0 else int(found.offset)

    def seek(self, offset: int) -> None:
        """Go on reading there."""
        with _typed(self._what):
            self._consumer.seek(self._at, offset)

    @property
    def position(self) -> int:
        """Where the next record is looked for: it steps over markers and what was aborted."""
        with _typed(self._what):
            found = self._consumer.position(self._at, timeout_ms=int(self._timeout_s * 1000))
        if found is None:
            raise UnavailableError(f"{self._what}: no position is known")
        return int(found)

    def poll(self, wait_s: float = 0.0) -> list[Record]:
        """The next records, or none if none came in time. DamagedRecordError if one is damaged when read again, too."""
        with _typed(self._what):
            try:
                return self._polled(wait_s)
            except faults.CorruptRecordError:
                at = self.position
            self.close()
            self._connect()
            self.seek(at)
            try:
                return self._polled(self._timeout_s)
            except faults.CorruptRecordError as error:
                raise DamagedRecordError(self.topic, self.position, str(error)) from error

    def _polled(self, wait_s: float) -> list[Record]:
        found = self._consumer.poll(timeout_ms=int(wait_s * 1000)).get(self._at, ())
        return [Record(each.offset, each.key, each.value, _state_of(each.headers)) for each in found]

    def read_until(self, end: int) -> Iterator[Record]:
        """The records from the position on, until it is at `end` or, where more came meanwhile, behind it.

        UnavailableError when nothing comes for the time limit.
        """
        until = time.monotonic() + self._timeout_s
        while True:
            at = self.position
            if at >= end:
                return
            records = self.poll(_SHORT_S)
            yield from records
            if records or self.position > at:
                until = time.monotonic() + self._timeout_s
            elif time.monotonic() > until:
                raise UnavailableError(f"{self._what}: nothing comes at offset {at}, though {end - at} are there")

    def close(self) -> None:
        """Let go of the connections."""
        with contextlib.suppress(faults.KafkaError, OSError):
            self._consumer.close(autocommit=False, timeout_ms=1000)


def _state_of(headers: Sequence[tuple[str, bytes]]) -> bytes | None:
    return next((value for name, value in headers if name == STATE_HEADER), None)


def _abandon(producer: KafkaProducer) -> None:
    """G3: let nothing more leave it."""
    sender = producer._sender  # close() alone flushes first, and leaves the sender at work when it can't
    sender.force_close()
    sender.join(1.0)
    with contextlib.suppress(faults.KafkaError, OSError):
        producer.close(timeout=0)


class Publisher:
    """One transactional id. For one thread. After an error only `abandon` is left."""

    def __init__(self, options: dict[str, object], transactional_id: str, timeout_s: float) -> None:
        self._timeout_s, self._id = timeout_s, transactional_id
        limit_ms = int(TRANSACTION_TIMES * timeout_s * 1000)
        with _typed(f"publishing as {transactional_id}"):
            given = {"transactional_id": transactional_id, "transaction_timeout_ms": limit_ms}
            self._producer = _made(KafkaProducer, {**producing(options, timeout_s), **given})

    def fence(self) -> None:
        """Take the id: what others of it left open is aborted, and they can't write any more."""
        with _typed(f"publishing as {self._id}"):
            self._producer.init_transactions()

    def send(self, topic: str, messages: Sequence[Message]) -> tuple[int, int]:
        """Send all in a transaction that stays open, each checked (G1); the offsets of the first and the last."""
        with _typed(f"publishing to {topic}"):
            self._producer.begin_transaction()
            sent = [
                self._producer.send(topic, each.value, each.key, [(STATE_HEADER, each.state)], partition=0)
                for each in messages
            ]
            until = time.monotonic() + (DELIVERY_TIMES + 1) * self._timeout_s
            offsets = [int(each.get(max(0.0, until - time.monotonic())).offset) for each in sent]
            return offsets[0], offsets[-1]

    def commit(self) -> None:
        """Commit the transaction. After an error it may be committed, now or later, or not."""
        with _typed(f"committing as {self._id}"):
            result = self._producer._transaction_manager.begin_commit()  # as commit_transaction(), with a limit (G3)
            self._producer._sender.wakeup()
            if not result.wait(timeout_ms=int(self._timeout_s * 1000)):
                raise UnavailableError(f"committing as {self._id}: no answer in {self._timeout_s:.0f} s")

    def abandon(self) -> None:
        """Let go, whatever is under way."""
        _abandon(self._producer)


class Producer:
    """Single records, each waited for. For one thread. After an error only `abandon` is left (G2)."""

    def __init__(self, options: dict[str, object], timeout_s: float) -> None:
        self._wait_s = (DELIVERY_TIMES + 1) * timeout_s
        with _typed("publishing"):
            self._producer = _made(KafkaProducer, producing(options, timeout_s))

    def put(self, topic: str, key: bytes, value: bytes | None) -> None:
        """Send one record; None strikes the key off."""
        with _typed(f"publishing to {topic}"):
            self._producer.send(topic, value, key, partition=0).get(self._wait_s)

    def abandon(self) -> None:
        """Let go, whatever is under way."""
        _abandon(self._producer)
