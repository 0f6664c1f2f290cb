"""Tests of agent/look_back.py: what the log's last transaction was, though fenced publishers left events beside it."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from agent.look_back import last_began
from replicator.events.bodies import TransactionBegan
from replicator.events.codec import Event
from replicator.events.values import DeltaKind
from tests.support.event_streams import SIZE_BYTES, VOLUME, Script, written
from tests.support.two_hosts_broker import Broker, BrokerLog
from tests.support.two_hosts_line import Line

OURS, THEIRS = UUID(int=0xA), UUID(int=0xB)


def _began(script: Script, transaction: UUID, chunks: int) -> None:
    """A transaction of that UUID, and `chunks` events of it."""
    script.put(TransactionBegan(1, transaction, None, 5_000, SIZE_BYTES, 1000, DeltaKind.FULL))
    for chunk in range(chunks):
        script.put(written(chunk))


def _last_began(events: list[Event], script: Script) -> TransactionBegan | None:
    broker = Broker(lambda *_: None)
    broker.topic((VOLUME, 1)).add([bytes(each.encoded) for each in events])
    return last_began(BrokerLog(broker, Line(lambda: False), random.Random(1)), script.state)


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("chunks", [0, 1, 4])
def test_what_a_fenced_publisher_smuggled_in_is_not_taken_for_it(at: int, chunks: int) -> None:
    fenced = Script().create()
    chain = Script(fenced.state)
    past = fenced.take()
    _began(fenced, THEIRS, chunks)
    chain.open()
    _began(chain, OURS, 3)
    chain.commit()
    assert len(chain.events) == 6
    found = _last_began([*past, *chain.events[:at], *fenced.events, *chain.events[at:]], chain)
    assert found is not None
    assert found.transaction == OURS


def test_a_transaction_that_a_later_publisher_went_on_with_is_found() -> None:
    first = Script().create()
    _began(first, OURS, 2)
    later = Script(first.state).open()
    later.put(written(7))
    later.commit()
    found = _last_began([*first.events, *later.events], later)
    assert found is not None
    assert found.transaction == OURS


def test_before_the_first_commit_there_is_none() -> None:
    script = Script().create()
    assert _last_began(script.events, script) is None
