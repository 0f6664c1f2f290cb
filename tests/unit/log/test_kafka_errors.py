"""What the client library raises, as what it means."""

from __future__ import annotations

from importlib import import_module

import pytest

from replicator.errors import ReplicatorError, UnavailableError
from replicator.log.errors import ForbiddenError
from replicator.log.kafka import _typed
from replicator.log.kafka_errors import DeniedError, FencedError, MissingTopicError, OffsetGoneError

faults = import_module("kafka.errors")  # behind log.kafka, which keeps the library's warnings at its import away


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (faults.UnknownTopicOrPartitionError(), MissingTopicError, "no such topic"),
        (faults.OffsetOutOfRangeError(), OffsetGoneError, "asked"),
        (faults.TopicAuthorizationFailedError(), DeniedError, "access rules forbid it"),
        (faults.KafkaTimeoutError("no answer"), UnavailableError, "asked: .*no answer"),
        (OSError(111, "Connection refused"), UnavailableError, "asked: Connection refused"),
    ],
)
def test_each_by_its_type(error: Exception, kind: type[ReplicatorError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught, _typed("asked"):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "error",
    [faults.InvalidProducerEpochError(), faults.ProducerFencedError(), faults.KafkaError("ProducerFenced: too late")],
)
def test_one_that_is_fenced_is_told_both_reasons(error: Exception) -> None:
    """A broker answers the same to a publisher that was overtaken, and to one whose transaction took too long."""
    with pytest.raises(FencedError, match=r"another publisher took over, or .* took too long"), _typed("asked"):
        raise error


def test_what_the_access_rules_forbid_is_forbidden() -> None:
    """So an archive goes on where it may not register, and waits where it can't."""
    assert issubclass(DeniedError, ForbiddenError) and not issubclass(OffsetGoneError, ForbiddenError)
