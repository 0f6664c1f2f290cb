"""What a compacted topic's table makes of records that none of us writes."""

from __future__ import annotations

import pytest

from replicator.errors import FormatError
from replicator.events.record import RECORD_BYTES_MAX
from replicator.log import kafka_compacted
from replicator.log.kafka import Client
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_compacted import KEY_BYTES_MAX, CompactedTopic
from replicator.log.kafka_consumers import Consumers
from replicator.log.kafka_records import Record


@pytest.fixture
def topic() -> CompactedTopic:
    """One whose broker is never asked."""
    client = Client(parse_kafka_url("kafka://nobody.invalid/backup"))
    return CompactedTopic(client, Consumers(client), "backup.catalogue")


def take(topic: CompactedTopic, *pairs: tuple[bytes | None, bytes | None]) -> dict[bytes, bytes]:
    """The table after these keys and values."""
    for offset, (key, value) in enumerate(pairs):
        topic._take(Record(offset, key, value, None))
    return topic._table


def test_a_value_that_is_too_large_is_a_damaged_one(topic: CompactedTopic, caplog: pytest.LogCaptureFixture) -> None:
    large, largest = bytes(RECORD_BYTES_MAX + 1), bytes(RECORD_BYTES_MAX)
    assert take(topic, (b"a", b"1"), (b"b", b"2"), (b"a", large)) == {b"a": b"", b"b": b"2"}
    assert f"topic backup.catalogue offset 2: key b'a' counts as damaged: its value has {len(large)}" in caplog.text
    assert take(topic, (b"a", b"3"), (b"b", large), (b"b", None), (b"c", largest)) == {b"a": b"3", b"c": largest}


def test_a_key_that_is_none_of_ours_is_passed_over(topic: CompactedTopic, caplog: pytest.LogCaptureFixture) -> None:
    longest = b"k" * KEY_BYTES_MAX
    assert take(topic, (None, b"1"), (None, None), (longest + b"k", b"2"), (longest, b"3")) == {longest: b"3"}
    assert caplog.text.count("none of ours") == 3


def test_more_keys_than_may_be_held(topic: CompactedTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_compacted, "ENTRIES_MAX", 2)
    with pytest.raises(FormatError, match="at most 2 keys"):
        take(topic, (b"a", b"1"), (b"b", b"2"), (b"c", b"3"))
