"""What an object store's answer means to the log. Pure: reads the text that obstore makes of an answer.

obstore has types for what it was asked (there already, not there, denied) and one for all the rest; which of the rest
it was stands in its text: the server's <Code>, the HTTP status, and whether a connection came about at all.

    what                                 type                  may the object of a put stand?
    no connection, host not found        UnavailableError      no
    401, 403, 405, bad keys or key file  AccessDeniedError     no
    no such bucket                       BucketMissingError    no
    the same, though it was there        UnavailableError      no
    a key that obstore takes for no path ForeignKeyError       no
    conditional PUT unknown (501)        UnsuitableStoreError  no
    full, over a quota                   NoSpaceError          no
    time-out, also by 400; 5xx, broken   UnavailableError      yes
    wrong region (301, 307, other 400)   UnavailableError      no

Invariant
  E1  No text of the store's goes into a message whole: a code and a bounded sentence, never a key or a signature.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from replicator.errors import NoSpaceError, NotFoundError, ReplicatorError, UnavailableError
from replicator.log.errors import ForbiddenError

_TEXT_MAX = 64 * 1024  # of a text that a store may have made as long as it likes
_SENTENCE_MAX = 200
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,400})")
_STATUS = re.compile(r"status code: (\d{3})")
_REREAD = re.compile(r"External AWS credential provider: \w+: ([^\n]{1,400})")
_FOREIGN = re.compile(r'invalid path: (?:Error parsing )?Path "(.{1,400}?)"(?: contained|: )')
_METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")
_DENIED_MENDS = {
    "InvalidAccessKeyId": "the key isn't known there: give the right one",
    "SignatureDoesNotMatch": "the secret doesn't belong to the key: give the right one",
    "ExpiredToken": "the session's token has expired: get a new one",
    "InvalidToken": "the session's token isn't one, or isn't the key's: get a new one",
    "RequestTimeTooSkewed": "set this host's clock: it differs from the server's",
}
_DENIED_MEND = "let the key's policy allow it: deploy/s3 has one for an agent, a receiver and a prune"
_BROKEN_OFF = ("RequestTimeout", "IncompleteBody")  # a body that didn't come, or not whole: told by 400
_FULL = ("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "EntityTooLarge", "InsufficientCapacity")


class AccessDeniedError(ForbiddenError):
    """The store knows us not, or lets us not; it may do once somebody mended that."""

    kind = "access-denied"


class BucketMissingError(NotFoundError):
    """There is no such bucket."""

    kind = "no-bucket"


class ForeignKeyError(UnavailableError):
    """Somebody else's key below the prefix, which no listing gets past; it may do once it was removed."""

    kind = "foreign-key"


class UnsuitableStoreError(ReplicatorError):
    """The store lacks what the log stands on: a put that is refused where the name is taken."""

    kind = "unsuitable-store"


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong; `may_stand`: whether the object of a put may stand all the same."""

    error: ReplicatorError
    may_stand: bool

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return type(self.error) is UnavailableError


def is_untold(text: str) -> bool:
    """Whether the store refused without a word why, as it must where a HEAD was asked."""
    text = text[:_TEXT_MAX]
    return _first(_STATUS, text) in ("400", "401", "403") and not _first(_CODE, text)


def is_past_end(text: str) -> bool:
    """Whether the range that was asked for begins where the object has ended."""
    return _first(_STATUS, text[:_TEXT_MAX]) == "416"


def judged(text: str, what: str, place: str, *, was_there: bool = False) -> Failure:
    """What `text`, the error that came of doing `what` to `place`, means; `was_there`: the bucket, some time ago."""
    text = text[:_TEXT_MAX]
    code, status = _first(_CODE, text), _first(_STATUS, text)
    told = f"{place}: {what}: {_sentence(text, code, status)}"
    unasked = _unasked(text, f"{place}: {what}")
    if unasked is not None:
        return Failure(unasked, False)
    if code == "NoSuchBucket":
        mend = "make the bucket, or mend its name or the endpoint"
        kind = UnavailableError if was_there else BucketMissingError
        return Failure(kind(f"{place}: there is no such bucket{' any more' * was_there}", mend=mend), False)
    if code in _DENIED_MENDS or status in ("401", "403", "405"):
        return Failure(AccessDeniedError(told, mend=_DENIED_MENDS.get(code, _DENIED_MEND)), False)
    if code in _FULL or status == "507":
        return Failure(NoSpaceError(told, mend="make room in the bucket, raise its quota, or trim the log"), False)
    if status == "501" or code == "NotImplemented":
        return Failure(no_conditional_put(place), False)
    if code in _BROKEN_OFF:
        return Failure(UnavailableError(told), True)
    if status in ("301", "307", "400") or "incorrectly configured region" in text:
        return Failure(
            UnavailableError(told, mend="is ?region=, ?endpoint= or ?virtual_hosted= what it must be?"), False
        )
    if "kind: Connect" in text:
        reason = f"{place}: {what}: no connection{_cause(text)}"
        return Failure(UnavailableError(reason, mend="is the endpoint's address right, and the server up?"), False)
    return Failure(UnavailableError(told), True)


def _unasked(text: str, where: str) -> ReplicatorError | None:
    """What obstore refuses by itself: no request without keys, no listing with a key that it takes for no path."""
    if any(service in text for service in _METADATA_SERVICES):
        mend = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials (gs, az: their own variables)"
        )
        return AccessDeniedError(f"{where}: no keys were found", mend=mend)
    if reread := _first(_REREAD, text):
        mend = "make the keys' file right again: it is read for each request"
        return AccessDeniedError(f"{where}: {reread[:_SENTENCE_MAX]}", mend=mend)
    if foreign := _first(_FOREIGN, text):
        mend = f"remove the keys that begin with {foreign!r} from the bucket: below a log's prefix is only the log"
        return ForeignKeyError(f"{where}: a key there is none of a log's: {foreign!r}", mend=mend)
    return None


def no_conditional_put(place: str) -> UnsuitableStoreError:
    """What is told of a store that replaces an object where it was asked to make a new one."""
    return UnsuitableStoreError(
        f"{place}: this store ignores If-None-Match: of two writers both would win, and one's events be lost",
        mend="take a store with conditional PUT (Amazon S3, versitygw, MinIO, Ceph since Squid), an SSH log, or Kafka",
    )


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _cause(text: str) -> str:
    """Why no connection came about, where the text says it."""
    for told in (
        "dns error",
        "Connection refused",
        "No route to host",
        "timed out",
        "certificate",
        "InvalidContentType",
    ):
        if told in text:
            return f" ({told})" if told != "InvalidContentType" else " (no TLS is spoken there: http:// instead?)"
    return ""


def _sentence(text: str, code: str, status: str) -> str:
    message = _first(_MESSAGE, text)
    if code or status:
        return " ".join(part for part in (status and f"HTTP {status}", code, message) if part)[:_SENTENCE_MAX]
    if "TimedOut" in text or "kind: Timeout" in text:
        return "timed out"
    if "kind: Interrupted" in text or "HTTP error: error sending request" in text:
        return "the connection broke off"
    return text.partition("\n")[0][:_SENTENCE_MAX]
