"""What is told of stores and lines that fail: types, words and mends."""

from __future__ import annotations

import pytest

from replicator.errors import NoSpaceError, ReplicatorError, UnavailableError
from replicator.log.s3_errors import (
    AccessDeniedError,
    BucketMissingError,
    ForeignKeyError,
    UnsuitableStoreError,
    is_past_end,
    is_untold,
    judged,
)
from replicator.log.ssh_reasons import TEXT_MAX, ssh_ended

HTTP = "Generic S3 error: Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {} X: {}"
SENT = "Generic S3 error: Error performing PUT http://h/b/k in 1ms - HTTP error: error sending request\n kind: {}, {}"


REREAD = (
    "no credentials for path External AWS credential provider: UsageError: /k holds keys, others may read it\n\nDebug"
)
FOREIGN = "Encountered object with invalid path: {}"
ILLEGAL = FOREIGN.format('Error parsing Path "p/../": Encountered illegal character sequence ".." whilst parsing')


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
        (HTTP.format(405, ""), AccessDeniedError, False, "405"),
        (http(501, "NotImplemented"), UnsuitableStoreError, False, "If-None-Match"),
        (http(403, "QuotaExceeded"), AccessDeniedError, False, "Quota"),
        (http(507, "InsufficientStorage"), NoSpaceError, False, "Insufficient"),
        (http(503, "SlowDown"), UnavailableError, True, "SlowDown"),
        (http(500, "InternalError"), UnavailableError, True, "InternalError"),
        (http(301, "PermanentRedirect"), UnavailableError, False, "Redirect"),
        (http(400, "AuthorizationHeaderMalformed"), UnavailableError, False, "Malformed"),
        (http(400, "ExpiredToken"), AccessDeniedError, False, "ExpiredToken"),
        (http(400, "InvalidToken"), AccessDeniedError, False, "InvalidToken"),
        (http(400, "RequestTimeout"), UnavailableError, True, "RequestTimeout"),
        (http(400, "IncompleteBody"), UnavailableError, True, "IncompleteBody"),
        (REREAD, AccessDeniedError, False, "/k holds keys, others may read it"),
        (FOREIGN.format('Path "p//" contained empty path segment'), ForeignKeyError, False, "'p//'"),
        (ILLEGAL, ForeignKeyError, False, "'p/../'"),
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


def test_a_bucket_that_was_there_is_away_and_may_come_back() -> None:
    failure = judged(http(404, "NoSuchBucket"), "put k", "s3://b/log", was_there=True)
    assert type(failure.error) is UnavailableError and not failure.may_stand
    assert "no such bucket any more" in failure.error.message and failure.error.mend


def test_what_is_asked_again_by_another_request() -> None:
    for status, code, untold in ((400, "", True), (403, "", True), (404, "", False), (400, "ExpiredToken", False)):
        assert is_untold(http(status, code) if code else HTTP.format(status, "")) == untold
    assert is_past_end(http(416, "InvalidRange")) and not is_past_end(http(400, "InvalidRange"))


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
        (0, b"Authorized uses only.", b"Welcome", "'Welcome' where", "login scripts"),
        (127, b"sh: 1: replicator: not found", b"", "(exit status 127); it said: sh: 1: rep", "install replicator"),
        (None, b"Authorized uses only.\r\n", b"", "no answer in time; it said: Authorized uses only.", None),
        (-9, b"warning: setlocale: LC_ALL", b"", "signal 9; it said: warning: setlocale: LC_ALL", None),
        (255, b"Authorized uses only.\r\nssh: h port 22: Connection refused", b"", "ssh: Authorized", "sshd running"),
        (None, b"", b"", "no answer in time", None),
        (-9, b"", b"", "signal 9", None),
    ],
)
def test_why_ssh_ended(status: int | None, errors: bytes, seen: bytes, word: str, mend: str | None) -> None:
    error = ssh_ended(status, errors, seen, "u@h")
    assert word in error.message and (mend or "") in (error.mend or "")


def test_what_the_far_end_wrote_is_bounded_and_printable() -> None:
    message = ssh_ended(255, b"\x1b[31m\x00\xff" + b"y" * 100_000, b"", "h").message
    assert len(message) <= TEXT_MAX + 100 and message.isprintable()
