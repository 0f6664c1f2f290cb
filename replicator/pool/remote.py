"""A pool that another process has open: the calls of Pool over its socket `control`.

Beside pool/local, on the other side of exporter/control. Calls take one of a few connections each; a reservation lives
on one of its own, and so does each lease, so that `stands` is: that connection stands. The catalogue is read here, at
the owner's transaction id (control_values says why).

    what happens                  what the caller sees
    the owner refuses             its error, by type (pool/control)
    the owner dies or hangs up    UnavailableError, from then on for every call; leases don't stand
    no answer within the time     UnavailableError for this call: done or not, `view` tells (I1 of pool/interface)
    a new owner at that socket    UnavailableError: a RemotePool is bound to the owner that it first met

Invariants
  R1  Nothing read under a lease is used after its connection fell: `stands` asks the kernel, not our memory.
  R2  While blocks are reserved here, this process holds `writers`, shared, until `close`: no new owner gives them out
      before. No thread may still write to reserved blocks when `close` is called.

Failures: UnavailableError, ConflictError (a newer owner), whatever the owner raises.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from replicator.errors import FormatError, ReplicatorError, UnavailableError
from replicator.pdata.block import Words
from replicator.pool.catalogue import Catalogue, StaleViewError
from replicator.pool.catalogue_schema import LoggedPoint
from replicator.pool.control import HelloAnswer
from replicator.pool.control_connection import ControlConnection
from replicator.pool.control_values import (
    Blocks,
    Count,
    DevIds,
    ExportFacts,
    Held,
    ListenAsked,
    Nothing,
    ResizeAsked,
    bytes_of,
    switch_asked,
    words_of,
)
from replicator.pool.interface import CutMade, CutRequest, DeviceFacts, PoolStatus, Switch
from replicator.pool.locks import PoolLock
from replicator.pool.view import CatalogueView

ANSWER_S = 30.0
"""How long an owner may take to answer what it only has to look up."""

COMMIT_S = 300.0
"""How long a commit may last: deleting a terabyte's mapping on a slow disk, behind others that wait."""

_CONNECTIONS = 8  # calls in flight together; each costs the owner a thread
Read = TypeVar("Read")
_VIEW_TRIES = 16  # the owner purges every 256 switches: once is rare, sixteen times in a row is a fault


class RemoteLease:
    """Devices that the owner keeps as they are while this connection stands (R1)."""

    def __init__(self, connection: ControlConnection, devices: dict[int, DeviceFacts]) -> None:
        self._connection = connection
        self.devices = devices

    @property
    def stands(self) -> bool:
        """Whether what was read under it may be used."""
        return self._connection.stands

    def release(self) -> None:
        """End it, and return when the owner knows; a second call does nothing."""
        if self._connection.is_open:
            with contextlib.suppress(ReplicatorError):
                self._connection.call("release", Nothing(), ANSWER_S)
            self._connection.close()


class RemotePool:
    """The pool at `path`, open in the process that answers at its control socket."""

    def __init__(
        self, path: Path, *, role: str = "own", answer_s: float = ANSWER_S, commit_s: float = COMMIT_S
    ) -> None:
        self._path, self._role = path, role
        self._answer_s, self._commit_s = answer_s, commit_s
        self._turn = threading.Condition()
        self._idle: list[ControlConnection] = []
        self._count = 0
        self._failure: str | None = None
        self._home = ControlConnection(path, role, lasting=True)
        self.owner: HelloAnswer = self._home.owner
        self._home_turn = threading.Lock()
        self._writers: PoolLock | None = None
        self._catalogue: Catalogue | None = None
        self._view: CatalogueView | None = None

    @property
    def path(self) -> Path:
        return self._path

    @property
    def block_bytes(self) -> int:
        return self.owner.block_bytes

    @property
    def stands(self) -> bool:
        """Whether the owner that this pool was opened with still answers."""
        return self._failure is None and self._home.stands

    # -- looking -----------------------------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """The owner's numbers of this instant."""
        found: PoolStatus = self._call("status", Nothing())
        return found

    def view(self) -> CatalogueView:
        """The catalogue as of the newest durable switch, read here."""
        return self._at_newest(self._view_at)

    def _view_at(self, at_id: int) -> CatalogueView:
        known = self._view
        if known is None or known.at_id != at_id:
            known = self._opened_catalogue().view(at_id)
            self._view = known
        return known

    def points(self, volume: UUID, limit: int, timeline: int | None = None) -> list[LoggedPoint]:
        """The newest restore points of the volume that the log has, read here."""
        return self._at_newest(lambda at_id: self._opened_catalogue().points(at_id, volume, limit, timeline))

    def _at_newest(self, read: Callable[[int], Read]) -> Read:
        for _ in range(_VIEW_TRIES - 1):
            with contextlib.suppress(StaleViewError):
                return read(self._call("transaction_id", Nothing()))
        return read(self._call("transaction_id", Nothing()))

    def _opened_catalogue(self) -> Catalogue:
        with self._turn:
            if self._catalogue is None:
                self._catalogue = Catalogue(self._path / "catalog.db", read_only=True)
            return self._catalogue

    def facts(self, dev_ids: Sequence[int] = ()) -> dict[int, DeviceFacts]:
        """The devices that there are, of those asked for (all, when none is named)."""
        found: list[DeviceFacts] = self._call("facts", DevIds(list(dev_ids)))
        return {each.dev_id: each for each in found}

    @contextmanager
    def lease(self, dev_ids: Sequence[int]) -> Iterator[RemoteLease]:
        """Hold these devices for as long as the block lasts."""
        lease = self.take_lease(dev_ids)
        try:
            yield lease
        finally:
            lease.release()

    def take_lease(self, dev_ids: Sequence[int]) -> RemoteLease:
        """Hold these devices until `release` is called."""
        connection = self._connect()
        try:
            found = connection.call("lease", DevIds(list(dev_ids)), self._answer_s)
        except BaseException:
            connection.close()
            raise
        return RemoteLease(connection, {each.dev_id: each for each in found})

    # -- changing ----------------------------------------------------------------------------------------------

    def switch(self, switch: Switch) -> int:
        """One atomic change (pool/interface)."""
        return int(self._call("switch", switch_asked(switch), self._commit_s))

    def cut(self, request: CutRequest) -> CutMade:
        """Snapshots of live volumes at one instant (pool/interface)."""
        made: CutMade = self._call("cut", request, self._commit_s)
        return made

    def reserve(self, count: int) -> Words:
        """Free data blocks to write to, given back when this pool is closed (R2)."""
        with self._home_turn:
            if self._writers is None:
                self._writers = PoolLock.write(self._path)
            return words_of(self._watched(self._home, "reserve", Count(count), self._commit_s))

    def give_back(self, blocks: Words) -> None:
        """Reserved blocks that no Filling will name; nobody writes to them any more."""
        with self._home_turn:
            self._watched(self._home, "give_back", Blocks(bytes_of(blocks)), self._answer_s)

    def resize(self, volume: UUID, size_bytes: int) -> int:
        """Grow or shrink a volume, live or not."""
        return int(self._call("resize", ResizeAsked(volume.bytes, size_bytes), self._commit_s))

    def set_metadata_snapshot(self, held: bool) -> int:
        """Reserve or release the metadata snapshot; returns the held root's block, 0 = none."""
        return int(self._call("set_metadata_snapshot", Held(held), self._commit_s))

    def flush(self) -> None:
        """Commit what live volumes have dirty."""
        self._call("flush", Nothing(), self._commit_s)

    # -- the exporter's own ------------------------------------------------------------------------------------

    def listen(self, asked: ListenAsked) -> list[ExportFacts]:
        """Ask the owner for one more NBD listener; what it serves there."""
        found: list[ExportFacts] = self._call("listen", asked)
        return found

    def exports(self) -> list[ExportFacts]:
        """All that the owner serves."""
        found: list[ExportFacts] = self._call("exports", Nothing())
        return found

    def listeners(self) -> list[ListenAsked]:
        """What each of the owner's listeners was asked for with; NotFoundError from an older owner."""
        found: list[ListenAsked] = self._call("listeners", Nothing())
        return found

    def stop(self) -> None:
        """Ask the owner to end; it answers first."""
        self._call("stop", Nothing())

    def close(self) -> None:
        """Hang up: leases end, reserved blocks go back (R2)."""
        with self._turn:
            self._failure = self._failure or "it was closed here"
            idle, self._idle = self._idle, []
            catalogue, self._catalogue = self._catalogue, None
            self._turn.notify_all()
        for connection in idle:
            connection.close()
        self._home.close()
        if catalogue is not None:
            catalogue.close()
        if self._writers is not None:
            self._writers.release()

    def __enter__(self) -> RemotePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- connections -------------------------------------------------------------------------------------------

    def _call(self, method: str, arguments: object, timeout_s: float | None = None) -> Any:
        with self._borrowed() as connection:
            return self._watched(connection, method, arguments, self._answer_s if timeout_s is None else timeout_s)

    def _watched(self, connection: ControlConnection, method: str, arguments: object, timeout_s: float) -> Any:
        """A call; where the owner is gone, all that follow say so."""
        self._check_standing()
        try:
            return connection.call(method, arguments, timeout_s)
        except (UnavailableError, FormatError) as error:
            if not self._home.is_open or not self._home.stands:
                self._failure = error.message
            raise

    def _check_standing(self) -> None:
        if self._failure is not None:
            raise UnavailableError(
                f"the owner of {self._path} can't be reached any more: {self._failure}", mend="open the pool again"
            )

    @contextmanager
    def _borrowed(self) -> Iterator[ControlConnection]:
        connection = self._take()
        try:
            yield connection
        finally:
            with self._turn:
                if connection.is_open and self._failure is None:
                    self._idle.append(connection)
                else:
                    connection.close()
                    self._count -= 1
                self._turn.notify()

    def _take(self) -> ControlConnection:
        with self._turn:
            while not self._idle and self._count >= _CONNECTIONS:
                self._turn.wait()
            self._check_standing()
            if self._idle:
                return self._idle.pop()
            self._count += 1
        try:
            return self._connect()
        except BaseException:
            with self._turn:
                self._count -= 1
                self._turn.notify()
            raise

    def _connect(self) -> ControlConnection:
        """One more connection, to the same owner as the first."""
        connection = ControlConnection(self._path, self._role)
        if connection.owner.instance != self.owner.instance:
            connection.close()
            self._failure = f"process {self.owner.pid} ended, and {connection.owner.pid} has the pool"
            self._check_standing()
        return connection
