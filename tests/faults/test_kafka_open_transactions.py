"""A transaction that stays open in a stream's topic: readers see nothing behind it, and so nothing is sent behind it.

A broker that lost its end may be left with such a one: its topic still has the open records, and its coordinator knows
the transaction no more, so that no timeout ends it. Here somebody else's stands for it.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from uuid import uuid4

import pytest

from replicator.errors import UnavailableError
from replicator.log.interface import Appended, AppendUnknown
from replicator.log.kafka import Client, Publisher
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_names import stream_topic
from replicator.log.kafka_opening import open_kafka
from replicator.log.kafka_records import Message
from replicator.log.kafka_settings import client_options
from tests.support import judges
from tests.support.event_streams import VOLUME, Script
from tests.support.kafka_broker import java_line, shared
from tests.support.kafka_jars import JVM_OF_TOOLS

_OPEN_S = 100.0  # times kafka_settings.TRANSACTION_TIMES: nothing but the mend ends it during a test


def run_mend(error: UnavailableError) -> None:
    """What the error says, by Kafka's own tool."""
    assert error.mend and "find-hanging" in error.mend
    tool, *words = shlex.split(error.mend.partition("if it is named: ")[2])
    assert tool == "kafka-transactions.sh"
    argv = [*java_line(*JVM_OF_TOOLS, "org.apache.kafka.tools.TransactionsCommand"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def sequences(log: KafkaLog) -> list[int]:
    return [event.header.sequence for event in log.reader(VOLUME, 1).read(1)]


def test_nothing_is_sent_behind_a_transaction_that_stays_open() -> None:
    """One that opens under a publisher leaves one transaction in doubt, and not one more for each try."""
    judges.require("kafka")
    url = shared().url(f"open-{uuid4().hex}", timeout="3s")
    address = parse_kafka_url(url)
    topic = stream_topic(address.prefix, VOLUME, 1)
    script = Script().create()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(Client(address)))
        log = stack.enter_context(contextlib.closing(open_kafka(url, True)))
        writer = stack.enter_context(log.writer(VOLUME, 1))
        assert isinstance(writer.append(writer.state.link, script.take()), Appended)
        known = writer.durable
        other = Publisher(client_options(address), f"other-{topic}", _OPEN_S)
        stack.callback(other.abandon)
        other.fence()
        opened_at, _ = other.send(topic, [Message(b"x", b"of somebody else", b"")])
        sent = script.transaction(1).take()
        assert isinstance(writer.append(known.link, sent), AppendUnknown)
        written = client.written_end(topic)
        for _ in range(2):
            assert writer.settle() == known
            with pytest.raises(UnavailableError, match=f"a transaction is open at offset {opened_at}") as caught:
                writer.append(known.link, sent)
            assert client.written_end(topic) == written, "nothing was sent"
        run_mend(caught.value)
        assert writer.settle() == script.state, "the one in doubt stands, once"
        assert isinstance(writer.append(script.state.link, script.transaction(2).take()), Appended)
        assert sequences(log) == list(range(1, script.state.sequence + 1))
