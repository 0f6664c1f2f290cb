"""kafka:// URLs: what they say, and what they may not; files of secrets; topics' names."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import UsageError
from replicator.log.kafka_address import KafkaAddress, Login, Tls, parse_kafka_url, read_secret
from replicator.log.kafka_names import (
    COMPACTED_SETTINGS,
    MESSAGE_BYTES_MAX,
    STREAM_SETTINGS,
    beacon_key,
    entry_key,
    settings_for,
    settings_mend,
    stream_topic,
    timelines_in,
    uuids_under,
    wrong_compacted_settings,
    wrong_settings,
)

VOLUME = UUID("6f1c0000-0000-4000-8000-00000000cafe")


def test_a_short_url() -> None:
    assert parse_kafka_url("kafka://b1/backup") == KafkaAddress("kafka://b1/backup", (("b1", 9092),), "backup")


def test_a_long_url() -> None:
    url = (
        "kafka://b1:9093,[::1]:9094/site.a?ca=/etc/ca.pem&cert=/etc/c.pem&key=/etc/k.pem&user=agent"
        "&password-file=/run/secret&timeout=5s&keep=2d&replicas=3"
    )
    found = parse_kafka_url(url)
    assert found.brokers == (("b1", 9093), ("::1", 9094)) and found.prefix == "site.a"
    assert found.tls == Tls(Path("/etc/ca.pem"), Path("/etc/c.pem"), Path("/etc/k.pem"))
    assert found.login == Login("SCRAM-SHA-512", "agent", Path("/run/secret"))
    assert (found.timeout_s, found.keep_s, found.replicas) == (5.0, 172_800.0, 3)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("agent:secret@b1/p", "neither user nor password"),
        ("b1/p?password=secret", "doesn't stand in a URL"),
        ("b1/", "no prefix"),
        ("b1/a/b", "no prefix"),
        ("b1/ä", "no prefix"),
        ("b1:0/p", "names no broker"),
        ("b1:99999/p", "names no broker"),
        ("/p", "names no broker"),
        ("b1,/p", "names no broker"),
        ("a..b/p", "names no broker"),
        (".h/p", "names no broker"),
        ("a" * 64 + "/p", "names no broker"),
        ("b1,a..b:9092/p", "names no broker"),
        ("[::1/p", "hosts can't be read"),
        ("[zz]:9092/p", "hosts can't be read"),
        ("ho\u2100st/p", "hosts can't be read"),
        ("b1/p?colour=red", "isn't known"),
        ("b1/p?tls=on&tls=off", "stands twice"),
        ("b1/p?tls=perhaps", "isn't on or off"),
        ("b1/p?tls=off&ca=/ca.pem", "goes with no certificates"),
        ("b1/p?ca=ca.pem", "absolute path"),
        ("b1/p?key=/k.pem", "goes with a certificate"),
        ("b1/p?user=agent", "takes a user and a password"),
        ("b1/p?sasl=plain", "takes a user and a password"),
        ("b1/p?user=a&password-file=/s&sasl=gssapi", "isn't known"),
        ("b1/p?user=a&password-file=/s&sasl=plain", "show the password"),
        ("b1/p?timeout=0s", "isn't between"),
        ("b1/p?keep=long", "not a duration"),
        ("b1/p?replicas=0", "no number of replicas"),
        ("b1/p#x", "no kafka:// URL"),
    ],
)
def test_what_is_refused(rest: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_kafka_url(f"kafka://{rest}")
    assert "secret" not in f"{caught.value} {caught.value.mend}".replace("password-file", "")


def test_a_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct-horse\n")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="mode 0640") as caught:
        read_secret(file)
    assert caught.value.mend == f"chmod 600 {file}"
    file.chmod(0o600)
    assert read_secret(file) == "correct-horse"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="isn't text"):
        read_secret(file)
    file.write_text("x" * 5000)
    with pytest.raises(UsageError, match="5000 bytes"):
        read_secret(file)
    with pytest.raises(UsageError, match="is no file"):
        read_secret(tmp_path)
    with pytest.raises(UsageError, match="can't be read"):
        read_secret(tmp_path / "none")
    file.write_text("\n")
    with pytest.raises(UsageError, match="holds no password"):
        Login("PLAIN", "agent", file).password()


def test_certificates_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    file.chmod(0o600)
    with pytest.raises(UsageError, match="no certificates"):
        Tls(ca=file).context()
    with pytest.raises(UsageError, match="no certificate and its key"):
        Tls(cert=file).context()


def test_hosts_that_a_resolver_may_be_asked_for() -> None:
    for host in ("a" * 63, "b1.example.org.", "b_1", "b\u00fccher.example", "10.0.0.7", "[fe80::1]"):
        assert parse_kafka_url(f"kafka://{host}:9093/p").bootstrap == [f"{host}:9093"]


def test_names_of_topics_and_keys() -> None:
    assert stream_topic("backup", VOLUME, 2) == f"backup.{VOLUME}.2"
    topics = [f"backup.{VOLUME}.{text}" for text in ("10", "2", "02", "x", "-1", "")] + ["backup.catalogue", "other"]
    topics += [f"backup.{VOLUME}.{number}" for number in ((1 << 32) - 1, 1 << 32, 9_999_999_999)]
    assert timelines_in(topics, "backup", VOLUME) == [2, 10, (1 << 32) - 1], "none beyond what a stream may have"
    keys = [entry_key(VOLUME), beacon_key(VOLUME), b"volume/../etc", b"volume/\xff"]
    assert uuids_under(keys, "volume/") == [VOLUME]
    assert len(stream_topic("p" * 128, VOLUME, (1 << 32) - 1)) <= 249


def test_settings_that_would_lose_events_are_found() -> None:
    assert wrong_settings(STREAM_SETTINGS) == {}
    for replicas in (-1, 1, 2):
        assert settings_for(STREAM_SETTINGS, replicas) == STREAM_SETTINGS
    for replicas in (3, 5):
        assert settings_for(STREAM_SETTINGS, replicas) == {**STREAM_SETTINGS, "min.insync.replicas": "2"}
    found = {
        **STREAM_SETTINGS,
        "cleanup.policy": "compact",
        "retention.ms": "604800000",
        "max.message.bytes": "1048588",
    }
    wanted = {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(MESSAGE_BYTES_MAX)}
    assert wrong_settings(found) == wanted


def test_a_stream_that_the_broker_compresses_is_found() -> None:
    assert STREAM_SETTINGS["compression.type"] == COMPACTED_SETTINGS["compression.type"] == "uncompressed"
    of_an_earlier_version = {name: value for name, value in STREAM_SETTINGS.items() if name != "compression.type"}
    assert wrong_settings(of_an_earlier_version) == {}
    assert wrong_settings({**STREAM_SETTINGS, "compression.type": "producer"}) == {}
    for codec in ("gzip", "lz4", "snappy", "zstd"):
        wrong = wrong_settings({**STREAM_SETTINGS, "compression.type": codec})
        assert wrong == {"compression.type": "uncompressed"}, codec
    wanted = "TOOL --alter --topic t --add-config compression.type=uncompressed"
    assert settings_mend("TOOL", "t", wrong) == wanted


def test_compacted_topics_that_would_lose_keys_are_found() -> None:
    assert wrong_compacted_settings(COMPACTED_SETTINGS) == wrong_compacted_settings({"cleanup.policy": "compact"}) == {}
    for found in ({}, {"cleanup.policy": "delete"}, {"cleanup.policy": "compact,delete"}):
        assert wrong_compacted_settings(found) == {"cleanup.policy": "compact"}
