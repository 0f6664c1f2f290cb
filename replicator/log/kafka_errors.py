"""What may be wrong with a broker, as types.

type               exit  meaning
FencedError        1     another publisher took the transactional id (in the log's rooms alone: becomes AppendConflict)
OffsetGoneError    1     an offset isn't there any more (in the log's rooms alone: it is looked for again)
MissingTopicError  5     there is no such topic
DeniedError        1     the broker's access rules forbid it
KafkaLoginError    1     user, password or mechanism is refused
KafkaTlsError      1     the certificate isn't to be trusted, or TLS is spoken at one end only
DamagedRecordError 3     a record's checksum is wrong on the broker's disk (of a stream's topic: becomes SegmentError)
"""

from __future__ import annotations

from replicator.errors import FormatError, NotFoundError, UnavailableError
from replicator.log.errors import ForbiddenError


class FencedError(UnavailableError):
    """Another publisher took the transactional id."""

    kind = "kafka-fenced"


class MissingTopicError(NotFoundError):
    """There is no such topic."""

    kind = "kafka-topic"


class OffsetGoneError(UnavailableError):
    """The offset isn't there any more: trimmed, or the broker lost its end."""

    kind = "kafka-offset"


class DeniedError(ForbiddenError):
    """The broker's access rules forbid it."""

    kind = "kafka-denied"


class KafkaLoginError(UnavailableError):
    """The broker refuses the user, the password, or the mechanism."""

    kind = "kafka-login"


class KafkaTlsError(UnavailableError):
    """The broker's certificate isn't to be trusted, or TLS is on at one end only."""

    kind = "kafka-tls"


class DamagedRecordError(FormatError):
    """The record at `offset` of `topic` isn't what was written, however often it is read."""

    kind = "kafka-record"

    def __init__(self, topic: str, offset: int, found: str) -> None:
        mend = "put the broker's disk back from another replica or copy"
        super().__init__(f"topic {topic} offset {offset}", "a record whose checksum is right", found, mend=mend)
        self.topic = topic
        self.offset = offset
