"""Opening the log that a URL names.

Asked by every command and daemon that takes LOG.

    /srv/log, ./log, log                        a directory
    file:///srv/log                             the same
    ssh://[USER@]HOST[:PORT]/PATH               a directory on another host
    s3://BUCKET/PREFIX?endpoint=…&region=…      an object store (also gs:// and az://)
    kafka://HOST:PORT[,HOST:PORT…]/PREFIX?…     topics of a broker

The kinds that lie elsewhere, and who opens them, stand in `schemes`.

Failures: UsageError (no such kind of log), NotFoundError (not a log), ConflictError (creating over other things),
UnavailableError (a log elsewhere can't be reached now).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.log import names
from replicator.log.interface import Log
from replicator.log.object_log import directory_log
from replicator.log.schemes import OPENERS, is_elsewhere, opener, split_scheme

_SUPPORTED = "a log is a directory, ssh://HOST/PATH, s3://BUCKET/PREFIX or kafka://HOST:PORT/PREFIX"


def open_log(url: str, *, create: bool = False) -> Log:
    """The log that `url` names; `create` makes it, with its folder, where nothing is."""
    parts = split_scheme(url)
    if parts is not None and parts[0] in OPENERS:
        return opener(parts[0])(_checked(url), create)
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


def _checked(url: str) -> str:
    if not url or "\0" in url:
        raise UsageError(f"{url!r} names no log", mend=_SUPPORTED)
    return url


def log_folder(url: str) -> Path:
    """The directory that `url` names; UsageError for what is none."""
    parts = split_scheme(_checked(url))
    if parts is None:
        return Path(url)
    scheme, rest = parts
    if scheme in OPENERS:
        raise UsageError(f"{url} is no directory", mend="name a directory")
    if scheme != "file" or not rest.startswith("/"):
        raise UsageError(f"{url!r} names no kind of log", mend=_SUPPORTED)
    return Path(unquote(rest))


def log_url(url: str) -> str:
    """`url` so that it is found from any folder: what a daemon remembers in its pool's catalogue."""
    return url if is_elsewhere(_checked(url)) else str(log_folder(url).absolute())


def log_places(url: str) -> tuple[Path, ...]:
    """Where on this machine the log's own files lie: what nothing else may be written over."""
    return () if is_elsewhere(url) else (log_folder(url),)


def is_log(path: str) -> bool:
    """Whether `path` names a log: by its scheme, or by the marker in the directory."""
    return split_scheme(path) is not None or (Path(path) / names.MARKER).is_file()
