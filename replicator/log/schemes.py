"""Which kinds of log lie elsewhere: a URL's scheme, and who opens it.

Asked by opening. An opener's module is imported when a log of its kind is opened, so that a command that needs none
starts without their libraries. An opener takes (url, create) and gives a Log; it raises UsageError for a URL that it
can't read, NotFoundError, ConflictError and UnavailableError as `open_log` does.

    scheme    what it is                                     its opener's module
    s3        a bucket of Amazon S3, or of a server like it  s3_opening
    gs, az    Google Cloud Storage, Azure Blob Storage       s3_opening
    ssh       a directory log on another host                ssh_opening
    kafka     topics of a broker                             kafka_opening
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Final, TypeAlias

from replicator.log.interface import Log

Opener: TypeAlias = Callable[[str, bool], Log]

OPENERS: Final = {
    "s3": ("replicator.log.s3_opening", "open_object_store"),
    "gs": ("replicator.log.s3_opening", "open_object_store"),
    "az": ("replicator.log.s3_opening", "open_object_store"),
    "ssh": ("replicator.log.ssh_opening", "open_ssh"),
    "kafka": ("replicator.log.kafka_opening", "open_kafka"),
}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.ASCII | re.DOTALL)


def split_scheme(url: str) -> tuple[str, str] | None:
    """(scheme, what follows ://) of a URL; None for what is a path."""
    match = _SCHEME.fullmatch(url)
    return None if match is None else (match[1], match[2])


def is_elsewhere(url: str) -> bool:
    """Whether `url` names a log that isn't a directory of this machine."""
    parts = split_scheme(url)
    return parts is not None and parts[0] in OPENERS


def opener(scheme: str) -> Opener:
    """Who opens logs of this scheme, one of OPENERS."""
    module, name = OPENERS[scheme]
    found: Opener = getattr(import_module(module), name)
    return found
