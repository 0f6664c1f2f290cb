"""A real broker's TLS and logins: what works, and what each mistake is called, within the time limit."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import pytest

from replicator.errors import NotFoundError, UnavailableError
from replicator.log.interface import Appended
from replicator.log.kafka_errors import KafkaLoginError, KafkaTlsError
from replicator.log.kafka_opening import open_kafka
from tests.support import judges
from tests.support.certificates import make_certificates
from tests.support.event_streams import VOLUME, Script
from tests.support.kafka_broker import PASSWORD, USER, Broker, shared

LIMIT_S = 10.0


@pytest.fixture
def broker() -> Broker:
    judges.require("kafka")
    return shared()


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(f"{PASSWORD}\n")
    return file


def secure_url(broker: Broker, password_file: Path, prefix: str, **options: str) -> str:
    given = {"ca": str(broker.folder / "tls" / "ca-cert.pem"), "user": USER, "password-file": str(password_file)}
    given |= {"timeout": f"{LIMIT_S:.0f}s", "replicas": "1", **options}
    return f"kafka://{broker.secure_address}/{prefix}?" + "&".join(f"{name}={value}" for name, value in given.items())


@pytest.mark.parametrize("mechanism", ["scram-sha-512", "plain"])
def test_publishing_and_following_over_tls(broker: Broker, password_file: Path, mechanism: str) -> None:
    url = secure_url(broker, password_file, f"tls-{mechanism}-{os.getpid()}", sasl=mechanism)
    script = Script().create().transaction(1, 2)
    with contextlib.closing(open_kafka(url, True)) as log, log.writer(VOLUME, 1) as writer:
        sent = script.take()
        assert isinstance(writer.append(writer.state.link, sent), Appended)
        assert list(log.reader(VOLUME, 1).read(1)) == sent
        assert PASSWORD not in log.name


def refused(url: str) -> UnavailableError:
    """What opening meets, within the time limit."""
    began = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        open_kafka(url, True)
    assert time.monotonic() - began < 3 * LIMIT_S
    return caught.value


def test_a_wrong_password(broker: Broker, password_file: Path) -> None:
    password_file.write_text("wrong")
    for mechanism in ("scram-sha-512", "plain"):
        error = refused(secure_url(broker, password_file, "x", sasl=mechanism))
        assert isinstance(error, KafkaLoginError) and f"refuses user {USER}" in error.message
        assert error.mend is not None and str(password_file) in error.mend


def test_an_unknown_user_and_a_mechanism_that_is_not_offered(broker: Broker, password_file: Path) -> None:
    error = refused(secure_url(broker, password_file, "x", user="nobody"))
    assert isinstance(error, KafkaLoginError) and "refuses user nobody" in error.message
    error = refused(secure_url(broker, password_file, "x", sasl="scram-sha-256"))
    assert isinstance(error, KafkaLoginError) and "doesn't offer SCRAM-SHA-256" in error.message
    assert error.mend is not None and "SCRAM-SHA-512" in error.mend


def test_a_wrong_authority_and_a_wrong_name(broker: Broker, password_file: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    error = refused(secure_url(broker, password_file, "x", ca=str(tmp_path / "other" / "ca-cert.pem")))
    assert isinstance(error, KafkaTlsError) and "isn't trusted by" in error.message and "ca=FILE" in str(error.mend)
    by_number = secure_url(broker, password_file, "x").replace("localhost", "127.0.0.1")
    error = refused(by_number)
    assert isinstance(error, KafkaTlsError) and "127.0.0.1" in error.message


def test_tls_at_one_end_only(broker: Broker, password_file: Path) -> None:
    error = refused(f"kafka://{broker.secure_address}/x?timeout=3s")
    assert isinstance(error, KafkaTlsError) and "tls=on" in str(error.mend)
    error = refused(secure_url(broker, password_file, "x").replace(broker.secure_address, broker.address))
    assert isinstance(error, KafkaTlsError) and "no TLS is spoken there" in error.message


def test_a_login_where_none_is_wanted(broker: Broker, password_file: Path) -> None:
    error = refused(f"kafka://{broker.address}/x?timeout=3s&user={USER}&password-file={password_file}")
    assert isinstance(error, KafkaLoginError) and "wants no login" in error.message


def test_nobody_listens_and_nobody_answers(broker: Broker) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert "can't be reached" in refused(f"kafka://127.0.0.1:{port}/x?timeout=1s").message
        free.listen()
        assert "doesn't answer" in refused(f"kafka://127.0.0.1:{port}/x?timeout=1s").message
    assert "can't be reached" in refused("kafka://no-such-host.invalid/x?timeout=1s").message


def test_one_of_several_brokers_is_enough(broker: Broker) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = broker.url(f"several-{os.getpid()}").replace("kafka://", f"kafka://127.0.0.1:{free.getsockname()[1]},")
        open_kafka(url, True).close()


def test_a_prefix_without_a_log(broker: Broker) -> None:
    with pytest.raises(NotFoundError, match=r"is not a log: there is no topic nothing\.catalogue"):
        open_kafka(broker.url("nothing"), False)
