"""What a publisher stands on, passed in: pool, log, files, clock, chance, limits. Made by the daemon, or by a test.

Also the door to the pool's bytes: its devices opened read-only in this process, and external origins.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from agent.clock import Clock
from agent.delta import PoolFiles
from agent.extract import THREADS_DEFAULT
from agent.ratelimit import TokenBucket
from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.events.frames import LEVEL_DEFAULT
from replicator.log.interface import Log
from replicator.pool import origins
from replicator.pool.catalogue_schema import Origin
from replicator.pool.interface import Pool
from replicator.pool.metadata_device import open_metadata

HOST_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class Context:
    """The world of one publisher.

    `pool` gives the pool, connected; `files` and `origin` open what is read for one transaction. `tell` is called after
    each event (for beacons), `count` before bytes go out, `report` with what went wrong but didn't stop anything,
    `answered` when the log has just taken a beacon, `agreed` when a volume's rows and stream do.
    """

    pool: Callable[[], Pool]
    log: Log
    files: Callable[[Pool], AbstractContextManager[PoolFiles]]
    origin: Callable[[Origin], AbstractContextManager[BlockDevice]]
    clock: Clock
    new_uuid: Callable[[], UUID]
    host: str
    bucket: TokenBucket
    tell: Callable[[], None] = lambda: None
    count: Callable[[int], None] = lambda _: None
    report: Callable[[str], None] = lambda _: None
    answered: Callable[[], None] = lambda: None
    agreed: Callable[[Pool, UUID], None] = lambda _, __: None
    level: int = LEVEL_DEFAULT
    threads: int = THREADS_DEFAULT

    def pass_bytes(self, count: int) -> None:
        """Wait until `count` bytes may go to the log."""
        self.count(count)
        delay = self.bucket.delay_s(count)
        while delay > 0 and not self.clock.is_stopping:
            step = min(delay, 1.0)  # in between, signs of life go out
            self.clock.wait(step)
            self.tell()
            delay -= step


@contextmanager
def open_files(pool: Pool) -> Iterator[PoolFiles]:
    """The pool's devices, for reading what a lease covers."""
    with ExitStack() as stack:
        metadata = stack.enter_context(closing(open_metadata(pool.path)))
        data = stack.enter_context(_opened(pool.path / "data"))
        yield PoolFiles(metadata, data, pool.block_bytes)


@contextmanager
def open_origin(origin: Origin) -> Iterator[BlockDevice]:
    """A volume's external origin, for reading."""
    device = origins.open_origin(origin)
    try:
        yield device
    finally:
        device.close()


@contextmanager
def _opened(path: Path) -> Iterator[BlockDevice]:
    device = FileDevice(path, read_only=True)
    try:
        yield device
    finally:
        device.close()


def host_name() -> str:
    """How this host is named in events."""
    return socket.gethostname()[:HOST_CHARACTERS_MAX]
