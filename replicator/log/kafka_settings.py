"""What the client library is told, from an address: connections, producers, consumers."""

from __future__ import annotations

from replicator.log.kafka_address import KafkaAddress
from replicator.log.kafka_names import BATCH_BYTES, MESSAGE_BYTES_MAX
from replicator.units import MIB

FETCH_BYTES = 4 * MIB  # what a consumer holds of a stream; more than the largest batch
DELIVERY_TIMES = 2  # so many time limits a record may take before it failed
TRANSACTION_TIMES = 3  # and so many the broker waits before it aborts a dead publisher's transaction
CLOSED_WHEN_REFUSED = "closed-when-refused"  # kafka, G5
_LONG_POLL_MS = (
    100  # a broker holds a fetch so long that finds nothing; other questions of that consumer wait behind it
)
_RECONNECT_MS = 1000

READING: dict[str, object] = {
    "isolation_level": "read_committed",
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "allow_auto_create_topics": False,
    "fetch_max_bytes": FETCH_BYTES,
    "max_partition_fetch_bytes": FETCH_BYTES,
    "fetch_max_wait_ms": _LONG_POLL_MS,
    "metrics_enabled": False,
}


def client_options(address: KafkaAddress) -> dict[str, object]:
    """What every client of ours is told."""
    limit_ms = int(address.timeout_s * 1000)
    found: dict[str, object] = {
        "bootstrap_servers": address.bootstrap,
        "client_id": "replicator",
        "request_timeout_ms": limit_ms,
        "bootstrap_timeout_ms": limit_ms,
        "reconnect_backoff_max_ms": _RECONNECT_MS,
        "proxy_url": f"{CLOSED_WHEN_REFUSED}://",
        "security_protocol": ("SASL_" if address.login else "") + ("SSL" if address.tls else "PLAINTEXT"),
    }
    if address.tls:
        found["ssl_context"] = address.tls.context()
    if address.login:
        found["sasl_mechanism"] = address.login.mechanism
        found["sasl_plain_username"] = address.login.user
        found["sasl_plain_password"] = address.login.password()
    return found


def producing(options: dict[str, object], timeout_s: float) -> dict[str, object]:
    """What producers are told besides."""
    limit_ms = int(timeout_s * 1000)
    return {
        **options,
        "delivery_timeout_ms": DELIVERY_TIMES * limit_ms,
        "max_block_ms": limit_ms,
        "batch_size": BATCH_BYTES,
        "max_request_size": MESSAGE_BYTES_MAX,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
