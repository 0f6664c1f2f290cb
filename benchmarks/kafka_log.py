"""Publishing to Kafka and reading from it, against what kafka-python alone reaches with the same transactions.

    python benchmarks/kafka_log.py [--rounds 6] [--mib 192] [--folder DIR]

A broker of its own on the loopback. Events as a publisher makes them: 512 KiB of random pages each, transactions of
the volume of 64 MiB, in transactions of the broker of 8 MiB. Alone: kafka-python with the same settings, the same bytes
as values, transactions of the same size, each future waited for; and a read_committed consumer by assign(). Ours:
StreamWriter and StreamReader, with sealing done before, and all checks. Both in turn, the order alternating; MB/s,
medians and ranges, the client's CPU, the ratio of each pair, and its median.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replicator.events.chunks import ChunksWritten
from replicator.events.codec import Event
from replicator.events.frames import Compressor, written_events
from replicator.events.pages import whole_masks
from replicator.events.state import StreamState
from replicator.log.interface import Appended
from replicator.log.kafka import Client
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_names import STREAM_SETTINGS, stream_topic
from replicator.log.kafka_opening import open_kafka
from replicator.log.kafka_records import Message
from replicator.log.kafka_writer import COMMIT_BYTES
from replicator.units import CHUNK_BYTES, MIB
from tests.support.event_streams import VOLUME, Script
from tests.support.kafka_broker import Broker

EVENT_CHUNKS = 8
TRANSACTION_MIB = 64


def bodies(mib: int) -> list[ChunksWritten]:
    """Random chunks, which don't shrink."""
    chance, compressor = random.Random(7), Compressor()
    found = []
    for first in range(0, mib * MIB // CHUNK_BYTES, EVENT_CHUNKS):
        data = chance.randbytes(EVENT_CHUNKS * CHUNK_BYTES)
        numbers = np.arange(first, first + EVENT_CHUNKS, dtype=np.uint64)
        found += written_events(compressor.pack(numbers, whole_masks(EVENT_CHUNKS), data))
    return found


def transactions(mib: int) -> list[list[Event]]:
    """A new stream's events, by the volume's transactions; the first list opens it."""
    script, made = Script(StreamState.start(VOLUME)).create(), bodies(TRANSACTION_MIB)
    found = [script.take()]
    for _ in range(mib // TRANSACTION_MIB):
        script.begin(TRANSACTION_MIB * MIB // CHUNK_BYTES)
        for body in made:
            script.put(body)
        found.append(script.commit().take())
    return found


def seconds(act: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def publish_alone(client: Client, topic: str, sent: list[list[Event]]) -> float:
    """kafka-python: begin, send, wait for each future, commit."""
    client.create_topic(topic, STREAM_SETTINGS)
    publisher = client.publisher(topic)
    publisher.fence()
    producer = publisher._producer
    groups: list[list[tuple[bytes, bytes]]] = [[]]
    for event in (event for events in sent for event in events):
        groups[-1].append((b"%d" % event.header.sequence, bytes(event.encoded)))
        if sum(len(value) for _, value in groups[-1]) >= COMMIT_BYTES:
            groups.append([])

    publisher.send(topic, [Message(b"0", b"first", b"")])
    publisher.commit()

    def act() -> None:
        for group in groups:
            producer.begin_transaction()
            futures = [producer.send(topic, value, key, partition=0) for key, value in group]
            for future in futures:
                future.get(60)
            producer.commit_transaction()

    took = seconds(act)
    publisher.abandon()
    return took


def publish_ours(log: KafkaLog, sent: list[list[Event]]) -> float:
    """A StreamWriter, an append for each 4 MiB as the agent does it."""
    with log.writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, sent[0]), Appended)

        def act() -> None:
            for events in sent[1:]:
                for i in range(0, len(events), EVENT_CHUNKS):
                    assert isinstance(writer.append(writer.state.link, events[i : i + EVENT_CHUNKS]), Appended)

        return seconds(act)


def read_alone(client: Client, topic: str, count: int) -> float:
    """kafka-python: poll until all are there."""
    consumer = client.consumer(topic)
    consumer.bounds()
    consumer.seek(0)
    inner = consumer._consumer

    def act() -> None:
        left = count
        while left > 0:
            left -= sum(len(records) for records in inner.poll(timeout_ms=100).values())

    took = seconds(act)
    consumer.close()
    return took


def main() -> None:
    """Rounds of four, each pair side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--mib", type=int, default=192)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    sent = transactions(given.mib)
    count = sum(map(len, sent))
    size = sum(event.length_bytes for events in sent for event in events) / 1e6
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, Broker(Path(folder) / "broker") as broker:
        for turn in range(given.rounds + 1):
            url = broker.url(f"bench-{uuid4().hex}", timeout="30s")
            client = Client(parse_kafka_url(url))
            with closing(client), closing(open_kafka(url, True)) as log:
                topic = f"alone-{uuid4().hex}"
                acts = {
                    "publish alone": lambda t=topic, c=client: publish_alone(c, t, sent),
                    "publish ours": lambda to=log: publish_ours(to, sent),
                    "read alone": lambda t=topic, c=client: read_alone(c, t, count),
                    "read ours": lambda of=log: seconds(lambda: list_length(of)),
                }
                for pair in ("publish", "read"):
                    for who in ("alone", "ours") if turn % 2 else ("ours", "alone"):
                        burnt = time.process_time()
                        rate = size / acts[f"{pair} {who}"]()
                        burnt = time.process_time() - burnt
                        if turn:  # the first warms up
                            rates.setdefault(f"{pair} {who}", []).append(rate)
                            cpu.setdefault(f"{pair} {who}", []).append(1000 * burnt / size)
                for used in (topic, stream_topic(parse_kafka_url(url).prefix, VOLUME, 1)):
                    client.delete_below(used, -1)  # all: the disk isn't ours to fill
    show(rates, cpu)


def list_length(log: KafkaLog) -> int:
    """Read the stream; how many events it has."""
    return sum(1 for _ in log.reader(VOLUME, 1).read(1))


def show(rates: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    """The table."""
    for name, found in rates.items():
        print(f"{name:14} {statistics.median(found):7.0f} MB/s [{min(found):.0f} to {max(found):.0f}],"
              f" {statistics.median(cpu[name]):.2f} ms of CPU a MB")  # fmt: skip
    for pair in ("publish", "read"):
        ratios = [ours / alone for ours, alone in zip(rates[f"{pair} ours"], rates[f"{pair} alone"], strict=True)]
        print(f"{pair}: ours / alone, median of {len(ratios)} pairs {statistics.median(ratios):.2f}"
              f" [{min(ratios):.2f} to {max(ratios):.2f}]")  # fmt: skip


if __name__ == "__main__":
    main()
