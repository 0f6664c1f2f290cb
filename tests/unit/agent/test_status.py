"""What `agent status` says: the headline answers first, the worst volume comes first, and nothing is promised."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest

from agent.status import AgentFacts, LogRoom, ReceiverFacts, Room, VolumeFacts, document, text
from replicator.history.protection import Failure

S = 1_000_000_000
NOW = 1_800_000_000 * S
WELL = VolumeFacts(
    "vm1", "u1", NOW - 3600 * S, 5.0, base_dev_id=3, number=7, equal_until_ns=NOW - S // 2, last_success_ns=NOW
)
ROOM = Room(5 << 30, 10 << 30, 7200.0)


def status(*volumes: VolumeFacts) -> dict[str, Any]:
    return document(AgentFacts("POOL", "LOG", 11, 12, volumes, ROOM), NOW, UTC)


@pytest.mark.parametrize(
    ("facts", "headline", "severity"),
    [
        (WELL, "PROTECTED, would lose 0.5 s", 0),
        (replace(WELL, equal_until_ns=NOW - 4 * S), "PROTECTED, would lose 4.0 s", 0),
        (replace(WELL, equal_until_ns=NOW - 6 * S), "NOT PROTECTED since 07:59 (6.0 s): publishing doesn't keep", 2),
        (replace(WELL, late_s=182.0, equal_until_ns=NOW - 90 * S), "PROTECTED, would lose 1 m 30 s", 0),
        (
            replace(WELL, failure=Failure(NOW - 3600 * S, "log unreachable: gone", "mount it")),
            "NOT PROTECTED since 07:00 (1 h): log unreachable: gone",
            2,
        ),
        (replace(WELL, paused_since_ns=NOW - 60 * S), "PAUSED since 07:59 (1 m)", 2),
        (
            replace(WELL, number=0, equal_until_ns=None, last_success_ns=None),
            "NOT PROTECTED since 07:00 (1 h): nothing was ever published",
            2,
        ),
    ],
)
def test_the_headline(facts: VolumeFacts, headline: str, severity: int) -> None:
    shown = status(facts)
    assert str(shown["headline"]).startswith(headline)
    assert (shown["severity"], shown["protected"]) == (severity, severity == 0)
    assert text(shown).splitlines()[0] == shown["headline"]


def test_without_a_volume_nothing_is_protected() -> None:
    shown = status()
    assert (shown["severity"], shown["protected"]) == (1, False)
    assert text(shown).splitlines()[:2] == [
        "NOT PROTECTED: there is no volume",
        "  replicator volume create POOL NAME --size SIZE",
    ]


def test_the_worst_comes_first_and_brings_its_mend() -> None:
    failing = replace(WELL, name="vm2", failure=Failure(NOW - 5 * S, "fenced", "stop one of the two"))
    shown = status(WELL, failing)
    assert [each["volume"] for each in shown["volumes"]] == ["vm2", "vm1"]
    assert shown["mend"] == "stop one of the two"
    assert "(vm2, the worst of 2)" in str(shown["headline"])
    assert text(shown).splitlines()[1] == "  stop one of the two"


def test_it_is_one_json_document_with_all_that_is_known() -> None:
    waiting = replace(WELL, waiting_number=8, waiting_chunks=100, base_since_ns=NOW - S, has_changed=True)
    shown = json.loads(json.dumps(status(waiting)))
    assert (shown["schema_version"], shown["kind"], shown["pid"], shown["exporter_pid"]) == (1, "agent", 11, 12)
    assert shown["volumes"][0]["waiting"] == {"number": 8, "sent_chunks": 100}
    assert shown["volumes"][0]["would_lose_s"] == 0.5
    assert shown["volumes"][0]["in_log_up_to"] == "2027-01-15T07:59:59.500+00:00"
    said = text(shown)
    assert "changed since" in said and "transaction 8 under way: 100 chunks sent" in said
    assert "room in the pool: 5 GiB of 10 GiB, lasts 2 h at this rate" in said


def test_what_is_short_and_what_happens_then_is_said_before() -> None:
    failing = replace(WELL, failure=Failure(NOW - 5 * S, "log unreachable: gone"))
    room = Room(5 << 30, 10 << 30, 7200.0, 3600.0, "drop-base")
    facts = AgentFacts("POOL", "LOG", 11, 12, (failing,), room, LogRoom(1 << 30, 2 << 30, 86400.0))
    said = text(document(facts, NOW, UTC))
    assert "lasts 2 h at this rate; the base is let go of (when_full = drop-base)" in said and "in 1 h" in said
    assert "room in the log: 1 GiB of 2 GiB, lasts 1 d at this rate" in said
    assert "when_full" not in text(document(replace(facts, volumes=(WELL,)), NOW, UTC)), "nothing gives way now"


def test_a_paused_volume_is_resumed_with_its_pool() -> None:
    assert status(replace(WELL, paused_since_ns=NOW))["mend"] == "replicator agent resume POOL"


def test_ages_are_there_for_machines() -> None:
    receiver = ReceiverFacts("oslo", "u", 2, 5, NOW - 7 * S)
    shown = status(replace(WELL, last_success_ns=NOW - 3 * S, receivers=(receiver,)))["volumes"][0]
    assert shown["last_success_age_s"] == 3.0
    assert shown["receivers"][0]["behind"] is None and shown["receivers"][0]["heard_age_s"] == 7.0
    assert "on another timeline" in text(status(replace(WELL, receivers=(receiver,))))


def test_no_volume_is_no_protection() -> None:
    assert not status()["protected"]
