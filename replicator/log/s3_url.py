"""The URL of an object store's log, in its parts. Pure.

    s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME&profile=NAME&credentials=FILE&virtual_hosted=true&timeout=10m]
    gs://BUCKET[/PREFIX][?credentials=FILE&timeout=10m]                 not tried by our tests
    az://CONTAINER[/PREFIX]?account=NAME[&endpoint=URL&timeout=10m]     not tried by our tests

    parameter        meaning                                                          default
    endpoint         the server's address, for a server that isn't Amazon's          Amazon's, of the region
    region           the bucket's region                                             AWS_REGION, else the profile's
    profile          a section of ~/.aws/credentials                                 AWS_PROFILE, else "default"
    credentials      a file with keys, absolute, readable by its owner alone         the usual chain (s3_credentials)
    virtual_hosted   whether the bucket is part of the host's name                   false
    timeout          how long one segment's transfer may take                        10m
    account          Azure's storage account

Invariants
  U1  No secret stands in a URL: a user name or a password in it is refused.
  U2  What isn't understood is refused by name; nothing is passed over.

Failure raised: UsageError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from replicator.errors import UsageError
from replicator.units import parse_duration

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'() /+=,@:~-]{0,700}", re.ASCII)  # a key has 1,024 bytes, a segment's name 93
_PARAMETERS = {
    "s3": {"endpoint", "region", "profile", "credentials", "virtual_hosted", "timeout"},
    "gs": {"credentials", "timeout"},
    "az": {"account", "endpoint", "timeout"},
}
TIMEOUT_S = 600.0  # 64 MiB at 110 kB/s


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """Where the objects of a log are."""

    scheme: str
    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""
    profile: str = ""
    credentials: str = ""
    account: str = ""
    virtual_hosted: bool = False
    timeout_s: float = TIMEOUT_S

    @property
    def name(self) -> str:
        """How messages name it: without parameters."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_object_url(url: str) -> ObjectPlace:
    """The place that `url` names (U1, U2)."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        _refuse(url, str(error))
    if "@" in parts.netloc:
        raise UsageError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}: a log's URL holds no keys",
            mend="give them by environment, by ~/.aws/credentials, or by ?credentials=FILE",
        )
    prefix = unquote(parts.path).strip("/")
    if not _BUCKET.fullmatch(parts.netloc):
        _refuse(url, f"{parts.netloc!r} names no bucket")
    if not _PREFIX.fullmatch(prefix) or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        _refuse(url, f"{prefix!r} is no prefix")
    if parts.fragment:
        _refuse(url, "nothing may follow a #")
    return _with_parameters(url, ObjectPlace(parts.scheme, parts.netloc, prefix), parts.query)


def _with_parameters(url: str, place: ObjectPlace, query: str) -> ObjectPlace:
    known = _PARAMETERS[place.scheme]
    given: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            _refuse(url, f"there is no parameter {key!r}; there are: {', '.join(sorted(known))}")
        if key in given or not value:
            _refuse(url, f"{key} wants one value")
        given[key] = value
    if place.scheme == "az" and "account" not in given:
        _refuse(url, "?account=NAME is missing")
    hosted = given.pop("virtual_hosted", "false")
    if hosted not in ("true", "false"):
        _refuse(url, "virtual_hosted is true or false")
    timeout_s = parse_duration(given.pop("timeout", f"{TIMEOUT_S:.0f}s"))
    endpoint = given.get("endpoint", "https://x")
    if not re.fullmatch(r"https?://[^/@\s]+/?", endpoint):
        _refuse(url, "an endpoint is http://HOST:PORT or https://HOST:PORT")
    if not given.get("credentials", "/").startswith("/"):
        _refuse(url, "credentials wants an absolute path: a daemon is started anywhere")
    if timeout_s < 1:
        _refuse(url, "timeout wants at least 1s")
    return ObjectPlace(
        place.scheme, place.bucket, place.prefix, **given, virtual_hosted=hosted == "true", timeout_s=timeout_s
    )


def _refuse(url: str, reason: str) -> NoReturn:
    form = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=NAME"
    raise UsageError(f"{url!r} names no log: {reason}", mend=f"write it like {form}")
