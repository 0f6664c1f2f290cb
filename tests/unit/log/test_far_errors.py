"""What is told of stores and lines that fail: types, words and mends; and keys' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import NoSpaceError, NotFoundError, ReplicatorError, UnavailableError, UsageError
from replicator.log.s3_credentials import s3_settings
from replicator.log.s3_errors import AccessDeniedError, BucketMissingError, UnsuitableStoreError, judged
from replicator.log.s3_url import parse_object_url
from replicator.log.ssh_reasons import TEXT_MAX, ssh_ended

HTTP = "Generic S3 error: Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {} X: {}"
SENT = "Generic S3 error: Error performing PUT http://h/b/k in 1ms - HTTP error: error sending request\n kind: {}, {}"


def http(status: int, code: str) -> str:
    return HTTP.format(status, f"<Error><Code>{code}</Code><Message>words</Message></Error>")


@pytest.mark.parametrize(
    ("text", "kind", "may_stand", "word"),
    [
        (http(404, "NoSuchBucket"), BucketMissingError, False, "no such bucket"),
        (http(403, "AccessDenied"), AccessDeniedError, False, "AccessDenied"),
        (http(403, "SignatureDoesNotMatch"), AccessDeniedError, False, "SignatureDoesNotMatch"),
        (http(403, "RequestTimeTooSkewed"), AccessDeniedError, False, "Skewed"),
        (HTTP.format(403, ""), AccessDeniedError, False, "403"),
        (http(501, "NotImplemented"), UnsuitableStoreError, False, "If-None-Match"),
        (http(403, "QuotaExceeded"), AccessDeniedError, False, "Quota"),
        (http(507, "InsufficientStorage"), NoSpaceError, False, "Insufficient"),
        (http(503, "SlowDown"), UnavailableError, True, "SlowDown"),
        (http(500, "InternalError"), UnavailableError, True, "InternalError"),
        (http(301, "PermanentRedirect"), UnavailableError, False, "Redirect"),
        (SENT.format("Connect", "dns error"), UnavailableError, False, "dns error"),
        (SENT.format("Connect", "Connection refused"), UnavailableError, False, "Connection refused"),
        (SENT.format("Connect", "InvalidContentType"), UnavailableError, False, "no TLS"),
        (SENT.format("Timeout", "TimedOut"), UnavailableError, True, "timed out"),
        (SENT.format("Interrupted", "Connection reset by peer"), UnavailableError, True, "broke off"),
        ("error performing PUT http://169.254.169.254/latest/api/token", AccessDeniedError, False, "no keys"),
        ("what nobody foresaw", UnavailableError, True, "nobody foresaw"),
    ],
)
def test_what_a_store_answered(text: str, kind: type[ReplicatorError], may_stand: bool, word: str) -> None:
    failure = judged(text, "put k", "s3://b/log")
    assert type(failure.error) is kind and failure.may_stand == may_stand
    assert word in failure.error.message and "s3://b/log" in failure.error.message
    assert failure.may_pass == (kind is UnavailableError)
    assert failure.error.mend or may_stand


def test_a_long_answer_makes_a_short_message() -> None:
    assert len(judged("x" * 10_000_000, "put k", "s3://b").error.message) < 400


@pytest.mark.parametrize(
    ("status", "errors", "seen", "word", "mend"),
    [
        (255, b"Host key verification failed.\r\n", b"", "Host key", "once by hand"),
        (255, b"u@h: Permission denied (publickey).", b"", "Permission denied", "ssh-copy-id"),
        (127, b"bash: line 1: replicator: command not found", b"", "command not found", "?command="),
        (127, b"", b"", "exit status 127", "install replicator"),
        (255, b"ssh: Could not resolve hostname h: unknown", b"", "ssh: Could not", "name right"),
        (255, b"ssh: connect to host h port 22: Connection refused", b"", "refused", "sshd running"),
        (0, b"", b"Welcome to Ubuntu", "Welcome to Ubuntu", "login scripts"),
        (None, b"", b"", "no answer in time", None),
        (-9, b"", b"", "signal 9", None),
    ],
)
def test_why_ssh_ended(status: int | None, errors: bytes, seen: bytes, word: str, mend: str | None) -> None:
    error = ssh_ended(status, errors, seen, "u@h")
    assert word in error.message and (mend or "") in (error.mend or "")


def test_what_the_far_end_wrote_is_bounded_and_printable() -> None:
    message = ssh_ended(255, b"\x1b[31m\x00\xff" + b"y" * 100_000, b"", "h").message
    assert len(message) <= TEXT_MAX + 10 and message.isprintable()


def keys_file(path: Path, mode: int = 0o600, section: str = "default") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[{section}]\naws_access_key_id = k%y\naws_secret_access_key = s\nregion = eu-1\n")
    path.chmod(mode)
    return path


def test_the_chain_of_keys(tmp_path: Path) -> None:
    keys = keys_file(tmp_path / ".aws" / "credentials")
    found = s3_settings(parse_object_url("s3://bucket/x"), {}, tmp_path)
    assert found == {"access_key_id": "k%y", "secret_access_key": "s", "region": "eu-1"}
    assert s3_settings(parse_object_url("s3://bucket/x?region=us"), {}, tmp_path)["region"] == "us"
    environment = {"AWS_ACCESS_KEY_ID": "other", "AWS_REGION": "ap-1"}
    assert s3_settings(parse_object_url("s3://bucket/x"), environment, tmp_path) == {"region": "ap-1"}
    named = s3_settings(parse_object_url(f"s3://bucket/x?credentials={keys}"), environment, tmp_path)
    assert named["access_key_id"] == "k%y"
    assert s3_settings(parse_object_url("s3://bucket/x"), {}, tmp_path / "nobody") == {}
    keys_file(tmp_path / "p" / "keys", section="backup")
    asked = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "p" / "keys")}
    assert s3_settings(parse_object_url("s3://bucket/x?profile=backup"), asked, tmp_path)["secret_access_key"] == "s"


def test_keys_that_are_refused(tmp_path: Path) -> None:
    open_file = keys_file(tmp_path / "k" / "open", mode=0o644)
    with pytest.raises(UsageError, match="others may read it") as caught:
        s3_settings(parse_object_url(f"s3://bucket/x?credentials={open_file}"), {}, tmp_path)
    assert caught.value.mend == f"chmod 600 {open_file}"
    with pytest.raises(NotFoundError, match="no file"):
        s3_settings(parse_object_url("s3://bucket/x?credentials=/nonexistent/keys"), {}, tmp_path)
    with pytest.raises(NotFoundError, match="no section"):
        s3_settings(parse_object_url("s3://bucket/x?profile=other"), {}, tmp_path)
    torn = tmp_path / "torn"
    torn.write_text("no section\n")
    torn.chmod(0o600)
    with pytest.raises(UsageError, match="line 1"):
        s3_settings(parse_object_url(f"s3://bucket/x?credentials={torn}"), {}, tmp_path)
