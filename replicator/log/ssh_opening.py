"""Opening a log on another host: URL in, ObjectLog out, over the system's own ssh.

Asked by schemes for ssh://. ssh runs with its configuration, agent and known hosts as the user has them, and never asks
anything; REPLICATOR_SSH or ?ssh= replaces the command.

Failures: UsageError (URL), NotFoundError (no log there), ConflictError (not empty; another folder than the key's),
UnavailableError (no connection, with what ssh said; a log that was there and isn't), FormatError (the far end isn't
ours).
"""

from __future__ import annotations

import os

from replicator.errors import ConflictError, NotFoundError
from replicator.log.object_log import ObjectLog
from replicator.log.ssh_channel import ProcessChannel
from replicator.log.ssh_command import SshPlace, parse_ssh_url
from replicator.log.stdio_client import RemoteStore
from replicator.log.stdio_connection import Connection


class SshLog(ObjectLog):
    """An ObjectLog that has a connection to let go of."""

    def __init__(self, store: RemoteStore, *, create: bool) -> None:
        super().__init__(store, create=create)
        self._remote = store

    def close(self) -> None:
        """End the connection; whoever still asks makes a new one."""
        self._remote.close()


def open_ssh(url: str, create: bool) -> SshLog:
    """The log at `url`; `create` makes its folder (not the one above) where nothing is."""
    place = parse_ssh_url(url, os.environ.get("REPLICATOR_SSH") or "ssh")
    store = ssh_store(place, create=create)
    try:
        return SshLog(store, create=create)
    except NotFoundError as error:
        store.close()
        raise NotFoundError(
            error.message, mend=error.mend or "the first agent that publishes there makes it a log"
        ) from None
    except ConflictError as error:
        store.close()
        mend = error.mend or "name an empty folder, or a log"
        raise ConflictError(f"{place.name} can't become a log: {error.message}", mend=mend) from None
    except BaseException:
        store.close()
        raise


def ssh_store(place: SshPlace, *, create: bool) -> RemoteStore:
    """The objects at `place`; no connection is made yet."""

    def connect(is_known: bool) -> Connection:
        channel = ProcessChannel(place.argv(), place.by_hand)
        return Connection(channel, place.name, place.path, create=create and not is_known)

    return RemoteStore(place.name, connect)
