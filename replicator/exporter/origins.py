"""External origins that an exporter has open: each once, for all exports over it, and again when its connection fell.

Used by exporter/fronts. What lies on a file or a device is opened once. What is an NBD export may go away for a while,
with its server: until it is back, reads behind unmapped blocks fail (EIO to the client), and then they go on, without
anybody restarting the exporter. That is safe since nothing is ever written to an origin: a read that failed is asked
again of another connection, and no flush has anything to lose (N2 of blockdev/nbd).

Invariants
  R1  What is opened again is what it was, or it isn't opened (E1 of pool/origins): a read fails rather than return
      another image's bytes.
  R2  No reader waits for a server that is away: his read fails at once (it may stand inside the gate, where a cut and
      everybody behind it would wait, too). He who finds it away has it opened again beside him, once in AGAIN_S.

Failures: NotFoundError, UnavailableError, ConflictError when first opened; afterwards DeviceError.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from replicator._buffer import Buffer
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError, ReplicatorError
from replicator.pool.catalogue_schema import Origin
from replicator.pool.origins import open_origin

AGAIN_S = 2.0  # a client's own retries go on for longer


class LastingOrigin:
    """One origin as a read-only device that outlives its connections."""

    read_only = True
    discard_zeroes = False

    def __init__(self, origin: Origin, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._origin, self._clock_s = origin, clock_s
        self._device = open_origin(origin)
        self._turn = threading.Lock()
        self._not_before_s = 0.0
        self._why = ""
        self._opening: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._device.name

    @property
    def size_bytes(self) -> int:
        return self._origin.size_bytes

    def fileno(self) -> int:
        return -1

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        target = bytearray(length_bytes)
        self.pread_into(target, offset_bytes)
        return bytes(target)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        device = self._device
        try:
            device.pread_into(target, offset_bytes)
        except DeviceError as error:
            if error.errno != errno.ENOTCONN:
                raise
            self._instead_of(device, error).pread_into(target, offset_bytes)

    def _instead_of(self, fallen: BlockDevice, error: DeviceError) -> BlockDevice:
        """What is open by now; else DeviceError, and it is being opened again if it is time (R2)."""
        with self._turn:
            if self._device is not fallen:
                return self._device
            if self._opening is None and self._clock_s() >= self._not_before_s:
                self._opening = threading.Thread(target=self._open_again, args=(fallen,), name="origin", daemon=True)
                self._opening.start()
            if not self._why:
                raise error
            raise DeviceError(f"read of {self.name}", error.offset_bytes, errno.ENOTCONN, self._why) from error

    def _open_again(self, fallen: BlockDevice) -> None:
        try:
            opened = open_origin(self._origin)
        except (ReplicatorError, OSError) as reason:
            with self._turn:
                self._opening, self._why = None, str(reason)
                self._not_before_s = max(self._not_before_s, self._clock_s() + AGAIN_S)
            return
        with self._turn:
            is_closed = self._not_before_s == float("inf")
            if not is_closed:
                self._device, self._why = opened, ""
            self._opening = None
        (opened if is_closed else fallen).close()

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._refuse("write", offset_bytes)

    def pwritev(self, parts: object, offset_bytes: int) -> None:
        self._refuse("write", offset_bytes)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._refuse("discard", offset_bytes)

    def grow(self, size_bytes: int) -> None:
        self._refuse("growing", size_bytes)

    def flush(self) -> None:
        """Nothing is written to it."""

    def _refuse(self, what: str, offset_bytes: int) -> None:
        raise DeviceError(f"{what} of {self.name}", offset_bytes, errno.EROFS, "it is open for reading only")

    def close(self) -> None:
        """Its connections are given back."""
        with self._turn:
            self._device.close()
            self._not_before_s = float("inf")


class Origins:
    """External origins that are open, by what they are; opened for reading, shared by all exports."""

    def __init__(self) -> None:
        self._open: dict[Origin, BlockDevice] = {}
        self._lock = threading.Lock()

    def get(self, origin: Origin | None) -> BlockDevice | None:
        """The open device, known to be what it was; NotFoundError, UnavailableError, ConflictError (pool/origins)."""
        if origin is None:
            return None
        with self._lock:
            if origin not in self._open:
                self._open[origin] = LastingOrigin(origin)
            return self._open[origin]

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for device in self._open.values():
                device.close()
            self._open.clear()
