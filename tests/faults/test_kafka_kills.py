"""A broker that is killed ten times while one publishes and one follows: nothing is lost, doubled or out of order."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_opening import open_kafka
from tests.support import judges
from tests.support.event_streams import VOLUME
from tests.support.kafka_broker import Broker
from tests.support.kafka_weather import PATIENCE_S, Following, Publishing

KILLS = 10
FILES_MAX = 200


@pytest.mark.long
def test_ten_kills_while_publishing_and_following(tmp_path: Path) -> None:
    judges.require("kafka")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(tmp_path / "broker"))
        url = broker.url("kills", timeout="1s")
        log = stack.enter_context(contextlib.closing(open_kafka(url, True)))
        other = stack.enter_context(contextlib.closing(open_kafka(url, False)))
        _kill_often(broker, log, other)


def _kill_often(broker: Broker, log: KafkaLog, other: KafkaLog) -> None:
    publishing = Publishing(log)
    publishing.sent = publishing.script.take()
    publishing.publish(1)
    with Following(other) as following:
        for i in range(KILLS):
            under_way = threading.Event()
            worker = threading.Thread(target=publishing.publish, args=(4 + i % 3, under_way))
            worker.start()
            under_way.wait(PATIENCE_S)
            broker.kill()
            broker.start()
            worker.join(PATIENCE_S)
            assert not worker.is_alive(), f"kill {i}: {publishing.outcomes}"
        files = len(list(Path("/proc/self/fd").iterdir()))
        following.await_sequence(len(publishing.sent))
    assert following.applied == publishing.sent, "0 lost, 0 doubled, 0 out of order"
    assert list(log.reader(VOLUME, 1).read(1)) == publishing.sent
    assert set(following.verdicts) == {"apply"}
    assert files < FILES_MAX, "connections are closed when they are refused"
    print(
        f"{KILLS} kills: {len(publishing.sent)} events sent and applied once, 0 lost, 0 doubled, 0 out of order;"
        f" publisher met {publishing.outcomes}, follower {following.errors}"
    )
