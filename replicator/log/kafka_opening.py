"""Opens the log that a kafka:// URL names: the address is read, then the brokers are asked.

Failures: UsageError, KafkaLoginError, KafkaTlsError, UnavailableError, NotFoundError.
"""

from __future__ import annotations

from replicator.log.kafka import Client
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_log import KafkaLog


def open_kafka(url: str, create: bool) -> KafkaLog:
    """The log that `url` names; `create` makes its two compacted topics where they aren't."""
    address = parse_kafka_url(url)
    return KafkaLog(address, Client(address), create=create)
