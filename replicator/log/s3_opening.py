"""Opening a log in an object store: URL and keys in, ObjectLog out.

Asked by schemes for s3://, gs:// and az://. The two last come with the library, by the same code, and are untested.

Failures: UsageError (URL, keys' file), NotFoundError (no bucket, no log in it), AccessDeniedError, UnavailableError.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.log.object_log import ObjectLog
from replicator.log.s3 import BucketStore, Patience
from replicator.log.s3_credentials import s3_settings
from replicator.log.s3_errors import BucketMissingError
from replicator.log.s3_url import ObjectPlace, parse_object_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as Bucket

_SMALL_TIMEOUT_S = 30.0  # of a request of a few kilobytes
_CONNECT_TIMEOUT_S = 10.0
_NO_RETRIES: RetryConfig = {"max_retries": 0}  # a retried put hides whether its first try stood: we retry ourselves


def open_object_store(url: str, create: bool) -> ObjectLog:
    """The log at `url`; `create` makes it where the prefix is empty."""
    store = open_bucket(parse_object_url(url))
    try:
        return ObjectLog(store, create=create)
    except BucketMissingError:
        raise
    except NotFoundError as error:
        raise NotFoundError(error.message, mend="the first agent that publishes there makes it a log") from None
    except ConflictError as error:
        mend = "name an empty prefix, or a log's"
        raise ConflictError(f"{store.name} can't become a log: {error.message}", mend=mend) from None


def open_bucket(place: ObjectPlace, patience: Patience | None = None) -> BucketStore:
    """The objects at `place`; nothing is asked of the server yet."""
    try:
        small_s = min(_SMALL_TIMEOUT_S, place.timeout_s)
        small, bulk = (_client(place, limit_s) for limit_s in (small_s, place.timeout_s))
    except (ValueError, OSError, BaseError) as error:
        raise UsageError(f"{place.name}: {str(error).partition(chr(10))[0][:200]}") from None
    return BucketStore(place.name, small, bulk, patience)


def _client(place: ObjectPlace, limit_s: float) -> Bucket:
    client: ClientConfig = {
        "timeout": timedelta(seconds=limit_s),
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
        "allow_http": place.endpoint.startswith("http://"),
    }
    settings: dict[str, Any] = {"client_options": client, "retry_config": _NO_RETRIES}
    prefix = place.prefix or None
    if place.endpoint:
        settings["endpoint"] = place.endpoint.rstrip("/")
    if place.scheme == "gs":
        if place.credentials:
            settings["service_account"] = place.credentials
        return GCSStore(place.bucket, prefix=prefix, **settings)
    if place.scheme == "az":
        return AzureStore(place.bucket, prefix=prefix, account_name=place.account, **settings)
    settings |= s3_settings(place, os.environ, _home())
    settings["disable_bulk_delete"] = True  # one by one: every server knows it, and says what it refuses
    return S3Store(place.bucket, prefix=prefix, virtual_hosted_style_request=place.virtual_hosted, **settings)


def _home() -> Path | None:
    """This user's home; None where HOME isn't set, and the user stands in no list of users."""
    try:
        return Path.home()
    except RuntimeError:
        return None
