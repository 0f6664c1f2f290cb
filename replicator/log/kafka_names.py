"""What each topic of a Kafka log is called, how it must be set, and the keys of the compacted ones.

    topic                       records                                                     written by
    PREFIX.catalogue            compacted; keys below                                       agents
    PREFIX.receivers            compacted; registrations                                    receivers
    PREFIX.VOLUME.TIMELINE      one stream: each record one event, one partition            that volume's publisher

    key in catalogue                      value
    log                                   the marker (log/records): this is a log, of which version
    volume/VOLUME                         a VolumeEntry
    beacon/VOLUME                         the beacon
    key in receivers
    VOLUME/RECEIVER                       a Registration

A record of a stream has the event's bytes as its value, its sequence number in decimal as its key, and one header,
`state`: the stream's state after it (events/state), so that the tail, and the start of a trimmed topic, are known from
one record. A topic for each timeline: a promote claims the next one by creating its topic, which the broker lets only
one do; a publisher that was left behind has no right to it, and its sequence numbers can't mix with the new ones.
The transactional id of a stream's publisher is its topic's name.
"""

from __future__ import annotations

import re
from uuid import UUID

from replicator.events.header import EVENT_BYTES_MAX
from replicator.events.values import TIMELINE_LIMIT
from replicator.log.names import uuids_in
from replicator.units import KIB, MIB

MARKER_KEY = b"log"
STATE_HEADER = "state"
BATCH_BYTES = 2 * MIB  # what one request carries of one topic; holds the largest event with its state
MESSAGE_BYTES_MAX = BATCH_BYTES + EVENT_BYTES_MAX + 64 * KIB  # a batch may be as large as the broker must take

STREAM_SETTINGS = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "max.message.bytes": str(MESSAGE_BYTES_MAX),
    "message.timestamp.type": "LogAppendTime",  # so that an event's age is by the broker's clock
    "compression.type": "uncompressed",  # events are compressed already, and what a reader holds is what was sent
}
COMPACTED_SETTINGS = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": "3600000",  # only closed segments are compacted: an hour of beacons lies there at most
    "max.compaction.lag.ms": "86400000",
    "compression.type": "uncompressed",
}
IN_SYNC_FROM = 3
"""Replicas of a topic from which on an answer waits for two: with two in all, one that is away would stop the log."""

_REQUIRED = ("cleanup.policy", "retention.ms", "retention.bytes")
_COMPRESSED = ("gzip", "lz4", "snappy", "zstd")  # readers may have no codec, and none bounds what comes out
_TIMELINE = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


def catalogue_topic(prefix: str) -> str:
    """The topic of entries and beacons."""
    return f"{prefix}.catalogue"


def receivers_topic(prefix: str) -> str:
    """The topic of registrations."""
    return f"{prefix}.receivers"


def stream_topic(prefix: str, volume: UUID, timeline: int) -> str:
    """The topic of one timeline of a volume, and its publisher's transactional id."""
    return f"{prefix}.{volume}.{timeline}"


def timelines_in(topics: list[str], prefix: str, volume: UUID) -> list[int]:
    """The timelines of `volume` among the names of all topics, ascending."""
    begin = f"{prefix}.{volume}."
    rest = [topic.removeprefix(begin) for topic in topics if topic.startswith(begin)]
    return sorted(int(each) for each in rest if _TIMELINE.fullmatch(each) and int(each) < TIMELINE_LIMIT)


def entry_key(volume: UUID) -> bytes:
    """The volume's entry."""
    return f"volume/{volume}".encode()


def beacon_key(volume: UUID) -> bytes:
    """The volume's beacon."""
    return f"beacon/{volume}".encode()


def registration_key(volume: UUID, receiver: UUID) -> bytes:
    """A receiver's registration for a volume."""
    return f"{volume}/{receiver}".encode()


def uuids_under(keys: list[bytes], begin: str) -> list[UUID]:
    """The UUIDs that follow `begin` in `keys`, ascending; other keys are passed over."""
    texts = [key.decode("ascii", "replace") for key in keys]
    return uuids_in([text.removeprefix(begin) for text in texts if text.startswith(begin)])


def settings_for(settings: dict[str, str], replicas: int) -> dict[str, str]:
    """`settings`, for a topic with so many replicas: from three on, what is acknowledged stands on two brokers."""
    return settings if replicas < IN_SYNC_FROM else {**settings, "min.insync.replicas": "2"}


def wrong_settings(found: dict[str, str]) -> dict[str, str]:
    """What a stream's topic would have to say, where it says something else that would lose or refuse events."""
    wrong = {name: STREAM_SETTINGS[name] for name in _REQUIRED if found.get(name) != STREAM_SETTINGS[name]}
    if int(found.get("max.message.bytes", "0")) < MESSAGE_BYTES_MAX:
        wrong["max.message.bytes"] = str(MESSAGE_BYTES_MAX)
    if found.get("compression.type") in _COMPRESSED:
        wrong["compression.type"] = STREAM_SETTINGS["compression.type"]
    return wrong


def wrong_compacted_settings(found: dict[str, str]) -> dict[str, str]:
    """What one of the compacted topics would have to say, where it says something else that would lose its keys."""
    policy = COMPACTED_SETTINGS["cleanup.policy"]
    return {} if found.get("cleanup.policy") == policy else {"cleanup.policy": policy}


def settings_mend(tool: str, topic: str, wrong: dict[str, str]) -> str:
    """The command that sets a topic so; `tool` is how kafka-configs.sh is called (kafka.Client.tool)."""
    config = ",".join(f"{name}={value}" for name, value in wrong.items())
    return f"{tool} --alter --topic {topic} --add-config {config}"
