"""A broker that stalls past every time limit, comes back with an older disk, or is written to by two publishers.

What the client library would do to us without our guards (log/kafka, G1 and G2) is shown beside: the same weather, the
guard taken away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from replicator.errors import UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.state import StreamState, encode_state
from replicator.log.errors import LogGapError, LostEndError
from replicator.log.interface import AppendConflict, Appended, AppendUnknown
from replicator.log.kafka import Client, Publisher
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_names import stream_topic
from replicator.log.kafka_opening import open_kafka
from replicator.log.kafka_records import Message
from replicator.log.kafka_settings import client_options
from replicator.log.kafka_stream import KafkaStream
from replicator.log.kafka_writer import KafkaWriter
from replicator.log.parts import indexed
from tests.support import judges
from tests.support.event_streams import VOLUME, Script
from tests.support.kafka_broker import Broker
from tests.support.kafka_weather import Publishing

PREFIX = "stalls"

pytestmark = pytest.mark.xdist_group("stalls")  # they share a broker of their own


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    judges.require("kafka")
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        with (  # a broker's first transaction takes its time: the time limits below are short
            contextlib.closing(open_kafka(broker.url("warm"), True)) as log,
            log.writer(VOLUME, 1) as writer,
        ):
            assert isinstance(writer.append(writer.state.link, Script().create().take()), Appended)
        yield broker


@pytest.fixture
def broker(running: Broker, request: pytest.FixtureRequest) -> Broker:
    return running


@pytest.fixture
def url(broker: Broker, request: pytest.FixtureRequest) -> str:
    return broker.url(request.node.name.replace("[", "-").replace("]", ""), timeout="1s")


@pytest.fixture
def log(url: str) -> Iterator[KafkaLog]:
    with contextlib.closing(open_kafka(url, True)) as opened:
        yield opened


def writer_with(log: KafkaLog, url: str, kind: type[Publisher]) -> KafkaWriter:
    """A writer with another kind of publisher."""
    address = parse_kafka_url(url)
    stream = KafkaStream(log._place, VOLUME, 1)
    return KafkaWriter(stream, lambda name: kind(client_options(address), name, address.timeout_s))


def events_that_apply(log: KafkaLog) -> int:
    """How many events stand, each the next one; a hole is an error."""
    checker = ChainChecker(StreamState.start(VOLUME))
    return sum(checker.accept(event) is Verdict.APPLY for event in log.reader(VOLUME, 1).read(1))


@pytest.mark.parametrize("guarded", [True, False])
def test_no_commit_with_holes(broker: Broker, log: KafkaLog, url: str, guarded: bool) -> None:
    """G1: the broker stalls in the middle of a transaction, until some records' time has run out."""

    class Stalling(Publisher):
        stalls = 1

        def send(self, topic: str, messages: Sequence[Message]) -> tuple[int, int]:
            if not Stalling.stalls or len(messages) < 4:
                return super().send(topic, messages)
            Stalling.stalls = 0
            broker.pause()
            try:
                return super().send(topic, messages[:-1])
            except UnavailableError:
                if guarded:
                    raise
            finally:
                broker.go_on()
            return self._go_on(topic, messages[-1:])

        def _go_on(self, topic: str, messages: Sequence[Message]) -> tuple[int, int]:
            """As one that doesn't look at the answers: the next records, and then the commit."""
            (last,) = [self._producer.send(topic, m.value, m.key, [("state", m.state)], partition=0) for m in messages]
            return 0, int(last.get(10).offset)

    script = Script().create()
    with log.writer(VOLUME, 1) as first:
        assert isinstance(first.append(first.state.link, script.take()), Appended)
    script.transaction(1, 2)
    sent = script.take()
    with writer_with(log, url, Stalling) as writer:
        if not guarded:
            assert isinstance(writer.append(writer.state.link, sent), Appended), "the library commits what is left"
            with pytest.raises(LogGapError):
                events_that_apply(log)
            return
        with pytest.raises(UnavailableError):
            writer.append(writer.state.link, sent)
        assert writer.settle().sequence == 2, "nothing of it stands"
        assert isinstance(writer.append(writer.state.link, sent), Appended)
    assert events_that_apply(log) == script.state.sequence


@pytest.mark.parametrize("guarded", [True, False])
def test_no_wedge(broker: Broker, log: KafkaLog, url: str, guarded: bool) -> None:
    """G2: a producer whose retried batch ran out of time never sends again."""
    clinging = Client(parse_kafka_url(url)).producer()
    clinging.put(log._catalogue.topic, b"other", b"1")
    beacon = Beacon.of(Script().create().state, 5, 6)
    log.write_beacon(beacon)
    broker.pause()
    with pytest.raises(UnavailableError):
        log.write_beacon(beacon)
    with pytest.raises(UnavailableError):
        clinging.put(log._catalogue.topic, b"other", b"2")
    broker.go_on()
    if guarded:
        log.write_beacon(beacon)
        assert log.read_beacon(VOLUME) == beacon
    else:
        with pytest.raises(UnavailableError):
            clinging.put(log._catalogue.topic, b"other", b"3")
    clinging.abandon()


def test_a_commit_without_an_answer_is_settled_by_reading(broker: Broker, log: KafkaLog, url: str) -> None:
    """The broker stalls at the commit: it may stand or not, and what is appended next hangs on what does."""

    class Unheard(Publisher):
        stalls = 1

        def commit(self) -> None:
            if Unheard.stalls:
                Unheard.stalls = 0
                broker.pause()
            super().commit()

    script = Script().create()
    sent = script.take()
    with writer_with(log, url, Unheard) as writer:
        outcome = writer.append(writer.state.link, sent)
        assert isinstance(outcome, AppendUnknown) and outcome.durable.sequence == 0
        with pytest.raises(UnavailableError):
            writer.settle()
        broker.go_on()
    publishing = Publishing(log, script, sent)
    publishing.publish(3)
    assert events_that_apply(log) == len(publishing.sent)
    print(f"met {publishing.outcomes}")


def test_of_two_publishers_the_later_one_wins(log: KafkaLog, url: str) -> None:
    """A publisher whose transaction is sent and not committed yet is fenced: nothing of it is ever seen."""

    class Overtaken(Publisher):
        def commit(self) -> None:
            with contextlib.closing(open_kafka(url, False)) as other, other.writer(VOLUME, 1) as later:
                winner = Script(later.state, "beta").open()
                assert isinstance(later.append(later.state.link, winner.take()), Appended)
            super().commit()

    script = Script().create()
    with log.writer(VOLUME, 1) as first:
        assert isinstance(first.append(first.state.link, script.take()), Appended)
    with writer_with(log, url, Overtaken) as writer:
        outcome = writer.append(writer.state.link, script.transaction(1).take())
        assert isinstance(outcome, AppendConflict | AppendUnknown)
        assert writer.settle().epoch == 2
    assert [event.header.epoch for event in log.reader(VOLUME, 1).read(1)] == [0, 1, 2]


def test_one_that_may_not_publish_fences_nobody(log: KafkaLog, url: str) -> None:
    """A writer whose tail is old is refused before it takes the transactional id: the other one doesn't even notice."""
    script = Script().create()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(open_kafka(url, False)))
        stale, writer = (stack.enter_context(each.writer(VOLUME, 1)) for each in (other, log))
        assert isinstance(writer.append(writer.state.link, script.take()), Appended)
        publisher = writer._publisher
        outcome = stale.append(stale.state.link, Script(stale.state, "beta").create().take())
        assert isinstance(outcome, AppendConflict)
        assert isinstance(writer.append(writer.state.link, script.transaction(1).take()), Appended)
        assert writer._publisher is publisher
    assert events_that_apply(log) == script.state.sequence


def test_what_a_broker_lets_in_beside_the_fence_is_skipped(log: KafkaLog, url: str) -> None:
    """Events of an earlier epoch, and exact duplicates, written by a plain producer behind the right ones (K3)."""
    script = Script().create()
    with log.writer(VOLUME, 1) as writer:
        writer.append(writer.state.link, script.take())
        zombie = Script(script.state).transaction(9)
        writer.append(writer.state.link, script.open().take())
        address = parse_kafka_url(url)
        beside = Publisher(client_options(address), "somebody-else", 5.0)
        beside.fence()
        stale = [Message(b"%d" % e.header.sequence, e.encoded, encode_state(zombie.state)) for e in zombie.take()]
        beside.send(stream_topic(address.prefix, VOLUME, 1), stale[:2])
        beside.commit()
        beside.abandon()
        assert log.writer(VOLUME, 1).state == script.state, "a publisher's tail is that of the latest epoch"
        assert isinstance(writer.append(writer.state.link, script.transaction(1).take()), Appended)
    checker = ChainChecker(StreamState.start(VOLUME))
    verdicts = [checker.accept(event) for event in log.reader(VOLUME, 1).read(1)]
    assert checker.state == script.state and verdicts.count(Verdict.STALE) == 2
    states = _states_of(log)
    for before in states:
        log._place.hints.clear()
        again = ChainChecker(before)
        for event in log.reader(VOLUME, 1).read(before.sequence + 1):
            again.accept(event)
        assert again.state == script.state, f"read from event {before.sequence + 1} on"
    (*_, part) = indexed(log.reader(VOLUME, 1)).parts(1)
    assert part.state == script.state


def _states_of(log: KafkaLog) -> list[StreamState]:
    checker = ChainChecker(StreamState.start(VOLUME))
    states = [checker.state]
    for event in log.reader(VOLUME, 1).read(1):
        if checker.accept(event) is Verdict.APPLY:
            states.append(checker.state)
    return states


def test_offsets_that_come_again_are_a_lost_end(log: KafkaLog, url: str) -> None:
    """W3: a broker that lost what it had acknowledged, and takes the next transaction as if nothing had happened."""

    class Older(Publisher):
        def send(self, topic: str, messages: Sequence[Message]) -> tuple[int, int]:
            first, last = super().send(topic, messages)
            return (first, last) if messages[0].key == b"1" else (first - 2, last - 2)

    script = Script().create()
    with writer_with(log, url, Older) as writer:
        assert isinstance(writer.append(writer.state.link, script.take()), Appended)
        outcome = writer.append(writer.state.link, script.transaction(1).take())
        assert isinstance(outcome, AppendConflict) and "lost its end" in outcome.reason
    assert events_that_apply(log) == 2, "nothing was committed"


def test_a_broker_from_an_older_copy_is_noticed(tmp_path: Path) -> None:
    """The last events are gone: the writer is told at its next append, readers and the tail say so."""
    judges.require("kafka")
    script = Script().create()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(tmp_path / "broker"))
        log = stack.enter_context(contextlib.closing(open_kafka(broker.url("older"), True)))
        writer = stack.enter_context(log.writer(VOLUME, 1))
        assert isinstance(writer.append(writer.state.link, script.transaction(1).take()), Appended)
        kept = writer.durable
        broker.kill()
        broker.save_disk("older")
        broker.start()
        publishing = Publishing(log, script, list(log.reader(VOLUME, 1).read(1)))
        publishing.publish(3)
        with log.writer(VOLUME, 1) as idle:
            assert isinstance(idle.append(idle.state.link, script.transaction(5).take()), Appended)
            broker.kill()
            broker.restore_disk("older")
            broker.start()
            lost = idle.durable
            outcome = _append_whatever_comes(idle, script.transaction(6))
            assert not isinstance(outcome, Appended), "it doesn't go on as if nothing had happened"
            assert idle.settle() == kept
        with pytest.raises(LostEndError):
            list(log.reader(VOLUME, 1).read(lost.sequence + 1))
        print(f"lost events {kept.sequence + 1} to {lost.sequence}: the writer met {outcome}")


def _append_whatever_comes(writer: KafkaWriter, script: Script) -> object:
    try:
        return writer.append(writer.state.link, script.take())
    except UnavailableError as error:
        return error
