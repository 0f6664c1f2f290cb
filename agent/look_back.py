"""What a stream's last committed transaction was, read back from its end; and what epochs it has had.

A topic may hold events beside the chain, which a publisher wrote after it was fenced and the broker let through
(log/interface: readers judge). None of them is taken for the chain's:

Invariants
  B1  The event before TransactionCommitted is the one that its `previous` names.
  B2  Of two events of one number the one of the later epoch is in the chain: who wrote the other one was fenced.
      Reading stops at the first one that isn't before that number and of the last one's epoch: it is in the chain.
"""

from __future__ import annotations

from contextlib import suppress

from agent.append import log_errors
from replicator.errors import FormatError
from replicator.events.bodies import TransactionBegan
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.errors import TrimmedError
from replicator.log.interface import Log, StreamReader


def beacon_epoch(log: Log, tail: StreamState) -> int:
    """The last beacon's epoch, or 0: a log that lost its end may have had later ones than its tail's."""
    with log_errors(), suppress(FormatError):
        beacon = log.read_beacon(tail.volume)
        if beacon is not None and beacon.timeline == tail.timeline:
            return beacon.epoch
    return 0


def last_began(log: Log, tail: StreamState) -> TransactionBegan | None:
    """How the last committed transaction began; None where that isn't kept, or is of another timeline."""
    committed = tail.committed
    if committed is None or committed.timeline != tail.timeline:
        return None
    with log_errors(), suppress(TrimmedError):
        reader = log.reader(tail.volume, tail.timeline)
        before = _event_before(reader, tail.committed_sequence, committed.digest)
        began = None if before is None else _event_at(reader, before.header.began, before.header.epoch)
        return began.body if began is not None and isinstance(began.body, TransactionBegan) else None
    return None


def _event_before(reader: StreamReader, sequence: int, digest: bytes) -> Event | None:
    """B1, for the event of that number and digest."""
    candidates: dict[bytes, Event] = {}
    for event in reader.read(sequence - 1):
        if event.digest == digest:
            return candidates.get(event.header.previous)
        if event.header.sequence == sequence - 1:
            candidates[event.digest] = event
    return None


def _event_at(reader: StreamReader, sequence: int, epoch: int) -> Event | None:
    """B2, for a number that isn't behind the first event of `epoch`, or is of that epoch itself."""
    found: Event | None = None
    for event in reader.read(sequence):
        header = event.header
        if header.sequence == sequence and (found is None or header.epoch > found.header.epoch):
            found = event
        if header.sequence >= sequence and header.epoch >= epoch:
            return found
    return found
