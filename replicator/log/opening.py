"""Opening the log that a URL names.

Asked by every command and daemon that takes LOG. Today a log is a directory; S3, SSH and Kafka have their schemes
reserved, so that a path is never mistaken for one.

    /srv/log, ./log, log      a directory
    file:///srv/log           the same

Failures: UsageError (no such kind of log), NotFoundError (not a log), ConflictError (creating over other things).
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.log import names
from replicator.log.interface import Log
from replicator.log.object_log import directory_log

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.ASCII | re.DOTALL)
_LATER = ("s3", "ssh", "kafka")
_SUPPORTED = "a log is a directory for now: write its path, or file:///PATH"


def open_log(url: str, *, create: bool = False) -> Log:
    """The log that `url` names; `create` makes it, with its folder, where nothing is."""
    path = log_folder(url)
    if path.exists() and not path.is_dir():
        raise NotFoundError(f"{url} is not a log: it is a file", mend=_SUPPORTED)
    if create and not path.parent.is_dir():
        raise NotFoundError(f"there is no folder {path.parent} to make the log in", mend=f"mkdir -p {path.parent}")
    try:
        return directory_log(path, create=create)
    except ConflictError as error:
        raise ConflictError(
            f"{url} can't become a log: {error.message}", mend="name an empty folder, or a log"
        ) from None


def log_folder(url: str) -> Path:
    """The directory that `url` names; UsageError for what is none, or not yet."""
    if not url or "\0" in url:
        raise UsageError(f"{url!r} names no log", mend=_SUPPORTED)
    match = _SCHEME.fullmatch(url)
    if match is None:
        return Path(url)
    scheme, rest = match.groups()
    if scheme in _LATER:
        raise UsageError(f"{url}: logs on {scheme} can't be opened by this version yet", mend=_SUPPORTED)
    if scheme != "file" or not rest.startswith("/"):
        raise UsageError(f"{url!r} names no kind of log", mend=_SUPPORTED)
    return Path(unquote(rest))


def log_url(url: str) -> str:
    """`url` so that it is found from any folder: what a daemon remembers in its pool's catalogue."""
    return str(log_folder(url).absolute())


def is_log(path: str) -> bool:
    """Whether `path` names a log: by its scheme, or by the marker in the directory."""
    return bool(_SCHEME.fullmatch(path)) or (Path(path) / names.MARKER).is_file()
