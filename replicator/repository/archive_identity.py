"""Who an archive is: what it is and where, as one text, and the UUID of it as which it is registered at its source.

Asked by cli/log_archive. Two archives under one UUID would let all be trimmed that either of them has; one archive
under two would hold trimming back for the one that nobody renews.

    archive       its place
    directory     file://THIS HOST/REAL/PATH
    ssh           ssh://HOST[:PORT]/PATH; with USER@ where the path is relative to the user's home
    s3, gs, az    SCHEME://BUCKET[/PREFIX][?endpoint=HOST[:PORT]][?account=NAME]
    kafka         kafka://HOST:PORT[,HOST:PORT…]/PREFIX, the brokers in order

Invariants
  A1  A place has whatever tells archives apart: a path or a loopback address, which each machine has for itself, goes
      with this machine's name; a bucket with its server's.
  A2  It has nothing that may change while the archive stays: no folder that it is seen from, options, keys, or user.

A host's name other than a loopback's is taken as it is typed: two machines that mean two hosts by one name (an alias in
~/.ssh/config, a name inside a private network) and archive one log share a UUID, and trimming waits for whichever spoke
last. It can't be told from here: the same name is one host everywhere else (A1).
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from replicator.log.kafka_address import parse_kafka_url
from replicator.log.opening import log_folder
from replicator.log.s3_url import parse_object_url
from replicator.log.schemes import is_elsewhere, split_scheme
from replicator.log.ssh_command import parse_ssh_url


def archive_uuid(url: str, here: str) -> UUID:
    """As what the archive at `url` is registered, seen from the machine `here`."""
    return uuid5(NAMESPACE_URL, archive_place(url, here).encode("utf-8", "backslashreplace").decode())


def archive_place(url: str, here: str) -> str:
    """The log at `url` as one text (A1, A2); UsageError for what names no log."""
    parts = split_scheme(url)
    if parts is None or not is_elsewhere(url):
        return f"file://{here}{os.path.realpath(log_folder(url))}"
    if parts[0] == "kafka":
        return _kafka_place(url, here)
    return _ssh_place(url, here) if parts[0] == "ssh" else _bucket_place(url, here)


def _kafka_place(url: str, here: str) -> str:
    address = parse_kafka_url(url)
    brokers = sorted({f"{_host(host, here)}:{port}" for host, port in address.brokers})
    return f"kafka://{','.join(brokers)}/{address.prefix}"


def _ssh_place(url: str, here: str) -> str:
    place = parse_ssh_url(url)
    is_absolute = place.path.startswith("/")
    user = f"{place.user}@" if place.user and not is_absolute else ""
    port = f":{place.port}" if place.port else ""
    path = place.path.rstrip("/") if is_absolute else f"/~/{place.path.rstrip('/')}"
    return f"ssh://{user}{_host(place.host, here)}{port}{path}"


def _bucket_place(url: str, here: str) -> str:
    place = parse_object_url(url)
    server = urlsplit(place.endpoint)
    port = f":{server.port}" if server.port else ""
    endpoint = f"?endpoint={_host(server.hostname, here)}{port}" if server.hostname else ""
    account = f"?account={place.account}" if place.account else ""
    return f"{place.name}{endpoint}{account}"


def _host(name: str, here: str) -> str:
    """A host's name, so that two machines mean one by it (A1)."""
    name = name.lower()
    return f"{name}%{here}" if _is_loopback(name) else f"[{name}]" if ":" in name else name


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
