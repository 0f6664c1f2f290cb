"""The log of a receiver: opened when it is first needed, and looked for again where it seems to have gone.

Stands between the daemon and the log that `open_log` opens. A log that was there before and isn't now is away (a
directory that isn't mounted, a broker that restarts), never new and empty: UnavailableError, so that it is waited for.

    what is met                          known before   answer
    opened                               -              the log
    can't be reached                     -              UnavailableError: tried again for ever
    nothing there, or not a log          yes            UnavailableError, naming what may be mounted
    nothing there, or not a log          no             as it is: a name that was mistyped

Invariants
  A1  One log is open, for all threads; `close` closes it.
  A2  `require_there` opens the log anew and closes that again: what is open already may look into an empty directory
      where a file system was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

from replicator.errors import NotFoundError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.log.interface import Log, Registration, StreamReader, StreamWriter, VolumeEntry


class PatientLog:
    """A Log over the one that `open_log` opens; see the module's table."""

    def __init__(self, name: str, open_log: Callable[[], Log], *, known: bool) -> None:
        self._name, self._open_log, self._known = name, open_log, known
        self._turn = threading.Lock()
        self._log: Log | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return self._name

    def opened(self) -> Log:
        """The log, open (A1)."""
        with self._turn:
            if self._log is None:
                self._log = self._try_open()
                self._known = True
            return self._log

    def require_there(self) -> None:
        """UnavailableError unless the log is where it was (A2)."""
        self._try_open().close()

    def _try_open(self) -> Log:
        try:
            return self._open_log()
        except NotFoundError as error:
            if not self._known:
                raise
            raise UnavailableError(
                f"the log {self._name} isn't there now: {error.message}", mend="mount or start what it lies on"
            ) from error

    def volumes(self) -> list[VolumeEntry]:
        """The catalogue, by name."""
        return self.opened().volumes()

    def timelines(self, volume: UUID) -> list[int]:
        """The timelines of `volume`, ascending."""
        return self.opened().timelines(volume)

    def claim_timeline(self, volume: UUID, timeline: int, host: str) -> bool:
        """Take the number of a new timeline."""
        return self.opened().claim_timeline(volume, timeline, host)

    def writer(self, volume: UUID, timeline: int) -> StreamWriter:
        """A writer at the stream's end."""
        return self.opened().writer(volume, timeline)

    def reader(self, volume: UUID, timeline: int) -> StreamReader:
        """A reader."""
        return self.opened().reader(volume, timeline)

    def read_beacon(self, volume: UUID) -> Beacon | None:
        """The volume's last beacon."""
        return self.opened().read_beacon(volume)

    def write_beacon(self, beacon: Beacon) -> None:
        """Replace it."""
        self.opened().write_beacon(beacon)

    def register(self, registration: Registration) -> None:
        """Replace what this receiver said of this volume."""
        self.opened().register(registration)

    def registrations(self, volume: UUID) -> list[Registration]:
        """What the volume's receivers said last, by name."""
        return self.opened().registrations(volume)

    def forget(self, volume: UUID, receiver: UUID) -> bool:
        """Strike a receiver off."""
        return self.opened().forget(volume, receiver)

    def trim(self, volume: UUID, timeline: int, below_sequence: int) -> int:
        """Remove events below a position."""
        return self.opened().trim(volume, timeline, below_sequence)

    def close(self) -> None:
        """Let go of what is held."""
        with self._turn:
            log, self._log = self._log, None
            if log is not None:
                log.close()
