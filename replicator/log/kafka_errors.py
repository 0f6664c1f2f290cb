"""What may be wrong with a broker, as types.

type               exit  meaning
FencedError        1     another publisher took the transactional id (in the log's rooms alone: becomes AppendConflict)
OffsetGoneError    1     an offset isn't there any more (in the log's rooms alone: it is looked for again)
MissingTopicError  5     there is no such topic
DeniedError        1     the broker's access rules forbid it
KafkaLoginError    1     user, password or mechanism is refused
KafkaTlsError      1     the certificate isn't to be trusted, or TLS is spoken at one end only
"""

from __future__ import annotations

from replicator.errors import NotFoundError, UnavailableError


class FencedError(UnavailableError):
    """Another publisher took the transactional id."""

    kind = "kafka-fenced"


class MissingTopicError(NotFoundError):
    """There is no such topic."""

    kind = "kafka-topic"


class OffsetGoneError(UnavailableError):
    """The offset isn't there any more: trimmed, or the broker lost its end."""

    kind = "kafka-offset"


class DeniedError(UnavailableError):
    """The broker's access rules forbid it."""

    kind = "kafka-denied"


class KafkaLoginError(UnavailableError):
    """The broker refuses the user, the password, or the mechanism."""

    kind = "kafka-login"


class KafkaTlsError(UnavailableError):
    """The broker's certificate isn't to be trusted, or TLS is on at one end only."""

    kind = "kafka-tls"
