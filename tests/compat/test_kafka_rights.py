"""The rights of deploy/kafka/acls.sh on a real broker: each user can do its work, and nothing that would hurt."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import NotFoundError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.state import StreamState
from replicator.log.errors import LogGapError, SegmentError
from replicator.log.interface import Appended, Registration
from replicator.log.kafka import Client
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_errors import DeniedError
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_names import MARKER_KEY, entry_key, stream_topic
from replicator.log.kafka_opening import open_kafka
from tests.support import judges
from tests.support.event_streams import OTHER_VOLUME, VOLUME, Script
from tests.support.kafka_broker import PASSWORD, Broker, acl_tool, java_line, shared
from tests.support.kafka_jars import JVM_OF_TOOLS

ACLS = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "acls.sh"
OpenAs = Callable[[str], KafkaLog]

pytestmark = pytest.mark.xdist_group("rights")  # to grant them Kafka's tool is started six times


@pytest.fixture(scope="module")
def granted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Broker, str]:
    """A broker on which acls.sh was run, by Kafka's own tool, and the prefix that it was run for."""
    judges.require("kafka")
    broker, prefix, folder = shared(), f"rights-{os.getpid()}", tmp_path_factory.mktemp("tool")
    acl_tool(folder)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", ACLS, broker.address, prefix], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Adding ACLs for resource") == ACLS.read_text().count("\nacl --")
    return broker, prefix


@pytest.fixture
def open_as(tmp_path: Path, granted: tuple[Broker, str]) -> Iterator[OpenAs]:
    """A log, opened as one of the users."""
    broker, prefix = granted
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(PASSWORD)
    options = f"ca={broker.folder}/tls/ca-cert.pem&sasl=plain&password-file={password}&timeout=5s&keep=0s&replicas=1"
    with contextlib.ExitStack() as opened:
        yield lambda user: opened.enter_context(
            contextlib.closing(
                open_kafka(f"kafka://{broker.secure_address}/{prefix}?user={user}&{options}", user == "agent")
            )
        )


def test_each_user_can_do_its_work_and_no_other(open_as: OpenAs) -> None:
    log = open_as("agent")
    script = Script().create().transaction(1).transaction(2)
    with log.writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.take()), Appended)
    log.write_beacon(Beacon.of(script.state, 1, 2))
    assert len(log.volumes()) == 1 and log.registrations(VOLUME) == []
    mine = Registration(VOLUME, UUID(int=7), "site-b", 1, 2, script.state.sequence, 3)
    follower = open_as("receiver")
    assert len(list(follower.reader(VOLUME, 1).read(1))) == script.state.sequence
    follower.register(mine)
    assert log.registrations(VOLUME) == [mine]

    forbidden: dict[str, Callable[[], object]] = {
        "an agent can't trim": lambda: log.trim(VOLUME, 1, script.state.sequence),
        "an agent can't speak for a receiver": lambda: log.register(mine),
        "an agent can't strike a receiver off": lambda: log.forget(VOLUME, mine.receiver),
        "a receiver can't trim": lambda: follower.trim(VOLUME, 1, script.state.sequence),
        "a receiver can't write beacons": lambda: follower.write_beacon(Beacon.of(script.state, 1, 2)),
        "a receiver can't claim a timeline": lambda: follower.claim_timeline(VOLUME, 2, "beta"),
        "a receiver can't publish": lambda: _append_as(follower, script),
    }
    for what, act in forbidden.items():
        with pytest.raises(UnavailableError) as caught:
            act()
        assert isinstance(caught.value, DeniedError) and caught.value.mend, f"{what}: {caught.value!r}"
    assert log.reader(VOLUME, 1).tail() == script.state
    assert open_as("keeper").trim(VOLUME, 1, script.state.sequence) > 1


def _append_as(log: KafkaLog, script: Script) -> object:
    with log.writer(VOLUME, 1) as writer:
        return writer.append(writer.state.link, Script(script.state).open().take())


def run_mend(error: UnavailableError) -> None:
    """What the error says, by Kafka's own tool."""
    tool, *words = shlex.split(error.mend or "")
    assert tool == "kafka-configs.sh"
    argv = [*java_line(*JVM_OF_TOOLS, "kafka.admin.ConfigCommand"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_topic_that_would_lose_events_is_refused_and_the_mend_mends_it() -> None:
    judges.require("kafka")
    url = shared().url(f"lossy-{os.getpid()}")
    with contextlib.closing(open_kafka(url, True)) as log:
        topic = stream_topic(parse_kafka_url(url).prefix, VOLUME, 1)
        assert log._client.create_topic(topic, {"retention.ms": "604800000"})
        events = Script().create().take()
        with log.writer(VOLUME, 1) as writer:
            with pytest.raises(UnavailableError, match="isn't set to keep events") as caught:
                writer.append(writer.state.link, events)
            assert caught.value.mend and "retention.ms=-1" in caught.value.mend and topic in caught.value.mend
            run_mend(caught.value)
            assert isinstance(writer.append(writer.settle().link, events), Appended)


@pytest.mark.parametrize("topic", ["catalogue", "receivers"])
@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_topic_made_by_hand_that_would_lose_keys_is_refused(topic: str, policy: str) -> None:
    """Its keys would go after a week: the marker, the entries, or the word of receivers that hold back trimming."""
    judges.require("kafka")
    url = shared().url(f"by-hand-{policy.replace(',', '-')}-{topic}-{os.getpid()}")
    address = parse_kafka_url(url)
    with contextlib.closing(Client(address)) as client:
        assert client.create_topic(f"{address.prefix}.{topic}", {"cleanup.policy": policy})
    with pytest.raises(UnavailableError, match="isn't set to keep its keys") as caught:
        open_kafka(url, True)
    wanted = f"--topic {address.prefix}.{topic} --add-config cleanup.policy=compact"
    assert caught.value.mend and caught.value.mend.endswith(wanted)
    run_mend(caught.value)
    open_kafka(url, True).close()


def test_who_may_not_ask_for_settings_opens_a_log(open_as: OpenAs, granted: tuple[Broker, str]) -> None:
    _, prefix = granted
    open_as("agent")
    log, topic = open_as("receiver"), f"{prefix}.catalogue"
    with pytest.raises(DeniedError):
        log._client.topic_settings(topic)
    assert log.registrations(UUID(int=1)) == []
    assert open_as("keeper")._client.topic_settings(topic)["cleanup.policy"] == "compact", "who trims finds out"


def test_what_stolen_keys_may_spoil_and_what_brings_it_back(open_as: OpenAs, granted: tuple[Broker, str]) -> None:
    """As deploy/kafka/README.md says of them: catalogue and registrations of everybody, and no event."""
    log, follower = open_as("agent"), open_as("receiver")
    script = Script(StreamState.start(OTHER_VOLUME)).create().transaction(1)
    with log.writer(OTHER_VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.take()), Appended)
    beacon, count = Beacon.of(script.state, 1, 2), script.state.sequence

    log.write_beacon(replace(beacon, epoch=99, sequence=1000))
    with pytest.raises(LogGapError, match="a beacon at event 1000"):
        list(follower.reader(OTHER_VOLUME, 1).read(1))
    log.write_beacon(beacon)
    assert len(list(follower.reader(OTHER_VOLUME, 1).read(1))) == count

    log._catalogue.put(entry_key(OTHER_VOLUME), None)
    assert OTHER_VOLUME not in [each.volume for each in follower.volumes()]
    with log.writer(OTHER_VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.open().transaction(2).take()), Appended)
    assert OTHER_VOLUME in [each.volume for each in follower.volumes()], "its agent was started again, and published"

    log._catalogue.put(MARKER_KEY, None)
    with pytest.raises(NotFoundError, match="has no marker"):
        open_as("receiver")
    open_as("agent")  # of a pool that never published: it may make a log
    open_as("receiver")

    theirs = Registration(OTHER_VOLUME, UUID(int=8), "site-a", 1, 2, script.state.sequence, 3)
    follower.register(theirs)
    assert follower.registrations(OTHER_VOLUME) == [theirs]
    assert follower.forget(OTHER_VOLUME, theirs.receiver) and follower.registrations(OTHER_VOLUME) == []

    producer, topic = log._client.producer(), stream_topic(granted[1], OTHER_VOLUME, 1)
    producer.put(topic, b"1000", b"no event")
    producer.abandon()
    events = follower.reader(OTHER_VOLUME, 1).read(1)
    assert [next(events).header.sequence for _ in range(script.state.sequence)][-1] == script.state.sequence
    with pytest.raises(SegmentError):
        next(events)
