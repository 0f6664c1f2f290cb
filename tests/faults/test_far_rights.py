"""What a stolen key may do: deploy/s3's policies on a real server, deploy/ssh's forced command on a real sshd."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import pytest

from replicator.errors import ConflictError
from replicator.events.beacon import Beacon
from replicator.log import names
from replicator.log.interface import Appended, Log, Registration
from replicator.log.object_log import ObjectLog
from replicator.log.opening import open_log
from replicator.log.s3_errors import AccessDeniedError
from replicator.log.s3_opening import open_bucket
from replicator.log.s3_url import parse_object_url
from tests.support import judges
from tests.support.event_streams import VOLUME, Script
from tests.support.s3_server import BUCKET, S3Server, running_s3
from tests.support.sshd import REPLICATOR, running_sshd

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
REGISTRATION = Registration(VOLUME, UUID(int=7), "replica", 1, 2, 5, 99)
SEGMENT = names.segment_name(VOLUME, 1, 1)


def publish(log: Log) -> Script:
    """What an agent does: make the stream, publish, replace the beacon, publish again in a new epoch."""
    script = Script().create().transaction(1).transaction(2)
    for _ in range(2):
        with log.writer(VOLUME, 1) as writer:
            outcome = writer.append(writer.state.link, script.take())
            assert isinstance(outcome, Appended)
        log.write_beacon(Beacon.of(script.state, 5, 10))
        script.open().transaction(3)
    return script


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """A server with a key for each part, under the policies that are shipped."""
    judges.require("versitygw")
    with running_s3(tmp_path / "s3") as running:
        statements = []
        for user in ("agent", "receiver", "prune"):
            running.add_user(user)
            text = (DEPLOY / "s3" / f"{user}.json").read_text().replace("BUCKET", BUCKET).replace("PREFIX", "log")
            statements += json.loads(text.replace(f'"{user.upper()}"', f'"{user}"'))["Statement"]
        running.set_policy({"Version": "2012-10-17", "Statement": statements})
        yield running


def test_an_agents_key_publishes_and_erases_nothing(server: S3Server) -> None:
    publish(open_log(server.url("log", user="agent"), create=True))
    agent = open_bucket(parse_object_url(server.url("log", user="agent")))
    with pytest.raises(AccessDeniedError, match="AccessDenied") as caught:
        agent.delete(SEGMENT)
    assert caught.value.mend and "deploy/s3" in caught.value.mend
    assert agent.size(SEGMENT) is not None
    start, registration = names.start_name(VOLUME, 1), names.registration_name(VOLUME, REGISTRATION.receiver)
    for plant in (agent.put, agent.put_if_absent):
        for name in (start, registration):
            with pytest.raises(AccessDeniedError):
                plant(name, b"all was trimmed, all is verified")
    assert agent.size(start) is None and agent.size(registration) is None
    with pytest.raises(AccessDeniedError):
        open_bucket(parse_object_url(server.url("other", user="agent"))).put("x", b"x")
    agent.put(SEGMENT, b"ruined")  # by agent.json alone, as its README says: agent-only-new.json is against it


def test_a_receivers_key_reads_registers_and_writes_nothing_else(server: S3Server) -> None:
    publish(open_log(server.url("log", user="agent"), create=True))
    log = open_log(server.url("log", user="receiver"))
    assert len(list(log.reader(VOLUME, 1).read(1))) > 10 and log.read_beacon(VOLUME) is not None
    log.register(REGISTRATION)
    assert log.registrations(VOLUME) == [REGISTRATION]
    store = open_bucket(parse_object_url(server.url("log", user="receiver")))
    wrongs: list[Callable[[], object]] = [lambda: store.put(SEGMENT, b"x"), lambda: store.delete(SEGMENT)]
    for wrong in wrongs:
        with pytest.raises(AccessDeniedError):
            wrong()
    with pytest.raises(AccessDeniedError):
        open_bucket(parse_object_url(server.url("log", user="receiver"))).put_if_absent("new", b"x")


def test_a_prunes_key_trims(server: S3Server) -> None:
    script = publish(open_log(server.url("log", user="agent"), create=True))
    pruned = open_log(server.url("log", user="prune"))
    assert pruned.trim(VOLUME, 1, script.state.sequence) > 1
    assert open_log(server.url("log", user="agent")).reader(VOLUME, 1).start().sequence > 0


def test_the_forced_commands(tmp_path: Path) -> None:
    judges.require("ssh")
    root = tmp_path / "log"
    shipped = (DEPLOY / "ssh" / "authorized_keys").read_text()
    forced = re.findall(r'command="([^"]*)" ', shipped)
    assert [re.findall(r"--(\w+)-only", each) for each in forced] == [["append"], ["follow"], []]
    mine, replicas = (
        each.replace("/srv/replicator/log", shlex.quote(str(root))).replace("replicator log", f"{REPLICATOR} log")
        for each in forced[:2]
    )
    with running_sshd(tmp_path / "sshd") as sshd:
        sshd.authorize(mine)
        suffix = f"?command={quote('rm -rf')}&ssh={quote(sshd.command)}"
        with closing(open_log(sshd.url(root) + suffix, create=True)) as log:
            script = publish(log)
            with pytest.raises(ConflictError, match="may only append"):
                log.trim(VOLUME, 1, 1 << 40)
            with pytest.raises(ConflictError, match="may only append"):
                log.register(REGISTRATION)
            assert isinstance(log, ObjectLog)
            with pytest.raises(ConflictError, match="may only append"):
                log._store.put_if_absent(names.start_name(VOLUME, 1), b"all was trimmed")
            assert log.reader(VOLUME, 1).tail().sequence < script.state.sequence
        with pytest.raises(ConflictError, match="this key reaches the log"):
            open_log(sshd.url(tmp_path / "other") + suffix, create=True)
        assert not (tmp_path / "other").exists()
        sshd.authorize(replicas)
        with closing(open_log(sshd.url(root) + suffix)) as log:
            assert list(log.reader(VOLUME, 1).read(1)), "a replica host reads"
            with pytest.raises(ConflictError, match="may only follow"):
                log.trim(VOLUME, 1, 1 << 40)
            log.register(REGISTRATION)
            assert log.registrations(VOLUME) == [REGISTRATION]
            assert log.forget(VOLUME, REGISTRATION.receiver), "any replica's, as deploy/ssh/README.md says"
