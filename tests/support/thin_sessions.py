"""Random sessions on thin pools: one model, played by whoever writes the pool, here or in the guest's kernel.

Standard library only, since the guest imports it (tests.support.guest).

    Hand       what an engine of thin pools can be told; its implementations are the engines
    Model      what each device must read as, whoever wrote it: the content is made from seeds, never read back
    Recorder   the hand that writes down; `play_in_guest` does it with the kernel, and hashes what the kernel reads

Invariant T1: discards are of whole blocks, which every engine unmaps, so that they read as zeros; or, where all devices
lie over one external origin, as that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from tests.support import guest

POOL = "pool"
BLKDISCARD = 0x1277  # of linux/fs.h; takes offset and length in bytes
LONGEST_WRITE = 300_000
LONGEST_RUN_BLOCKS = 60
DEVICES_MAX = 7


class Hand(Protocol):
    """One engine of thin pools, at work on devices by their dev_id."""

    def create(self, size_bytes: int) -> int: ...

    def snapshot(self, origin: int) -> int: ...

    def delete(self, dev_id: int) -> set[int]:
        """Delete a device; returns all that went with it."""

    def write(self, dev_id: int, offset_bytes: int, length_bytes: int, seed: int) -> None: ...

    def discard(self, dev_id: int, offset_bytes: int, length_bytes: int) -> None: ...


def content(seed: int, length_bytes: int) -> bytes:
    """What a write with `seed` writes."""
    return random.Random(seed).randbytes(length_bytes)


@dataclass(slots=True)
class Model:
    """What every device of a pool must read as."""

    devices: dict[int, bytearray] = field(default_factory=dict)

    def hashes(self) -> dict[int, str]:
        """The sha256 of each device."""
        return {dev_id: hashlib.sha256(data).hexdigest() for dev_id, data in self.devices.items()}

    def sizes(self) -> dict[int, int]:
        """Each device's length in bytes."""
        return {dev_id: len(data) for dev_id, data in self.devices.items()}


@dataclass(slots=True)
class Session:
    """Steps of chance, done by `hand` and in `model` alike; `origin` is what shines through where nothing is mapped."""

    rng: random.Random
    model: Model
    hand: Hand
    block_bytes: int
    devices_max: int = DEVICES_MAX
    origin: bytes = b""

    def steps(self, count: int) -> None:
        """Writes mostly; now and then a discard, a snapshot, a deletion."""
        kinds = (self.write, self.fill, self.discard, self.snapshot, self.delete)
        for _ in range(count):
            self.rng.choices(kinds, (60, 8, 14, 12, 6))[0]()

    def _unmapped(self, offset: int, length: int) -> bytes:
        return self.origin[offset : offset + length].ljust(length, b"\0")

    def _any(self) -> int:
        return self.rng.choice(sorted(self.model.devices))

    def create(self, size_bytes: int) -> int:
        """A new, empty device."""
        dev_id = self.hand.create(size_bytes)
        self.model.devices[dev_id] = bytearray(self._unmapped(0, size_bytes))
        return dev_id

    def snapshot(self, origin: int | None = None) -> None:
        """A snapshot of any device, unless there are many."""
        if len(self.model.devices) < self.devices_max:
            origin = self._any() if origin is None else origin
            self.model.devices[self.hand.snapshot(origin)] = bytearray(self.model.devices[origin])

    def delete(self) -> None:
        """Any device, while there are more than two; with those that its engine deletes with it, but one stays."""
        if len(self.model.devices) > 2:
            dev_id = self._any()
            size_bytes = len(self.model.devices[dev_id])
            for gone in self.hand.delete(dev_id):
                del self.model.devices[gone]
            if not self.model.devices:
                self.create(size_bytes)

    def write(self) -> None:
        """Some sectors, anywhere."""
        dev_id = self._any()
        data = self.model.devices[dev_id]
        length = min(self.rng.choice((512, 4096, self.block_bytes, self.rng.randrange(1, LONGEST_WRITE))), len(data))
        length = max(512, length // 512 * 512)
        self._write(dev_id, self.rng.randrange((len(data) - length) // 512 + 1) * 512, length)

    def fill(self) -> None:
        """A run of blocks."""
        dev_id = self._any()
        length = min(self.rng.randrange(1, LONGEST_RUN_BLOCKS) * self.block_bytes, len(self.model.devices[dev_id]))
        offset = self.rng.randrange(len(self.model.devices[dev_id]) - length + 1) // self.block_bytes * self.block_bytes
        self._write(dev_id, offset, length // 512 * 512)

    def _write(self, dev_id: int, offset: int, length: int) -> None:
        seed = self.rng.getrandbits(48)
        self.hand.write(dev_id, offset, length, seed)
        self.model.devices[dev_id][offset : offset + length] = content(seed, length)

    def discard(self) -> None:
        """Whole blocks (T1)."""
        dev_id = self._any()
        blocks = len(self.model.devices[dev_id]) // self.block_bytes
        begin = self.rng.randrange(blocks)
        length = min(self.rng.randrange(1, LONGEST_RUN_BLOCKS), blocks - begin) * self.block_bytes
        self.hand.discard(dev_id, begin * self.block_bytes, length)
        offset = begin * self.block_bytes
        self.model.devices[dev_id][offset : offset + length] = self._unmapped(offset, length)


@dataclass(slots=True)
class Recorder:
    """The hand that writes its orders down, for the guest; `taken` are the dev_ids that there are."""

    taken: set[int]
    orders: list[list[int | str]] = field(default_factory=list)

    def _new(self) -> int:
        dev_id = next(each for each in range(1, 1 << 24) if each not in self.taken)
        self.taken.add(dev_id)
        return dev_id

    def create(self, size_bytes: int) -> int:
        self.orders.append(["create", dev_id := self._new(), size_bytes])
        return dev_id

    def snapshot(self, origin: int) -> int:
        self.orders.append(["snapshot", dev_id := self._new(), origin])
        return dev_id

    def delete(self, dev_id: int) -> set[int]:
        self.orders.append(["delete", dev_id])
        self.taken.discard(dev_id)
        return {dev_id}

    def write(self, dev_id: int, offset_bytes: int, length_bytes: int, seed: int) -> None:
        self.orders.append(["write", dev_id, offset_bytes, length_bytes, seed])

    def discard(self, dev_id: int, offset_bytes: int, length_bytes: int) -> None:
        self.orders.append(["discard", dev_id, offset_bytes, length_bytes])

    def message(self, *words: str | int) -> None:
        """A message to the pool, as dmsetup takes it."""
        self.orders.append(["message", *words])


@dataclass(frozen=True, slots=True)
class Seen:
    """What the kernel read before and after its orders, and the pool's status line at both instants."""

    before: dict[int, str]
    after: dict[int, str]
    status_before: str
    status_after: str


def guest_script(
    sizes: dict[int, int], orders: list[list[int | str]], block_sectors: int = 128, *, over_origin: bool = False
) -> str:
    """The script that plays `orders` on the pool of devices 0 (metadata) and 1 (data), and prints a Seen.

    With `over_origin` all thin devices have device 2 as their external origin.
    """
    given = json.dumps([sorted(sizes.items()), orders, block_sectors, over_origin])
    return f"from tests.support import thin_sessions\nthin_sessions.play_in_guest({given!r})\n"


def seen(output: str) -> Seen:
    """What a guest printed."""
    found = json.loads(output)
    hashes = [{int(key): value for key, value in found[name].items()} for name in ("before", "after")]
    return Seen(hashes[0], hashes[1], found["status_before"], found["status_after"])


def held_root(status: str) -> int:
    """The held root of a pool's status line; 0 for none."""
    word = status.split()[6]
    return 0 if word == "-" else int(word)


def play_in_guest(given: str) -> None:
    """Runs inside the guest."""
    sizes, orders, block_sectors, over_origin = json.loads(given)
    guest.create_pool(POOL, guest.device(0), guest.device(1), block_sectors=block_sectors)
    origin = guest.device(2) if over_origin else None
    player = _Player({dev_id: size // guest.SECTOR for dev_id, size in sizes}, origin)
    status, before = guest.status(POOL), player.hashes()
    for word, *arguments in orders:
        getattr(player, word)(*arguments)
    result = Seen(before, player.hashes(), status, guest.status(POOL))
    guest.teardown()
    print(json.dumps(asdict(result)))


class _Player:
    """The kernel's hand: every device active, named by its id, and open, so that it isn't written out at each step.

    What it hashes it reads from the disk: a device's cache goes when it is closed.
    """

    def __init__(self, sizes: dict[int, int], origin: Path | None) -> None:
        self.sizes, self.origin = sizes, origin
        self._open: dict[int, int] = {}
        for dev_id in sizes:
            self._activate(dev_id)

    def _activate(self, dev_id: int) -> None:
        guest.activate_thin(POOL, f"thin{dev_id}", dev_id, self.sizes[dev_id], self.origin)

    def _fd(self, dev_id: int) -> int:
        if dev_id not in self._open:
            self._open[dev_id] = os.open(_path(dev_id), os.O_RDWR)
        return self._open[dev_id]

    def _close(self, dev_id: int) -> None:
        if dev_id in self._open:
            os.fsync(self._open[dev_id])
            os.close(self._open.pop(dev_id))

    def hashes(self) -> dict[int, str]:
        for dev_id in self.sizes:
            self._close(dev_id)
        return {dev_id: guest.sha256(_path(dev_id)) for dev_id in self.sizes}

    def create(self, dev_id: int, size_bytes: int) -> None:
        self.sizes[dev_id] = size_bytes // guest.SECTOR
        guest.message(POOL, "create_thin", dev_id)
        self._activate(dev_id)

    def snapshot(self, dev_id: int, origin: int) -> None:
        self._close(origin)
        self.sizes[dev_id] = self.sizes[origin]
        with guest.suspended(f"thin{origin}"):
            guest.message(POOL, "create_snap", dev_id, origin)
        self._activate(dev_id)

    def delete(self, dev_id: int) -> None:
        self._close(dev_id)
        del self.sizes[dev_id]
        guest.remove(f"thin{dev_id}")
        guest.message(POOL, "delete", dev_id)

    def write(self, dev_id: int, offset: int, length: int, seed: int) -> None:
        data, done = memoryview(content(seed, length)), 0
        while done < length:
            done += os.pwrite(self._fd(dev_id), data[done:], offset + done)

    def discard(self, dev_id: int, offset: int, length: int) -> None:
        fcntl.ioctl(self._fd(dev_id), BLKDISCARD, struct.pack("=QQ", offset, length))

    def message(self, *words: str | int) -> None:
        for dev_id in self.sizes:
            self._close(dev_id)
        guest.message(POOL, *words)


def _path(dev_id: int) -> Path:
    return Path("/dev/mapper") / f"thin{dev_id}"
