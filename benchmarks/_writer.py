"""Random 4 KiB writes over NBD for other benchmarks, each with the instant it was due and the one it was answered.

    python benchmarks/_writer.py SOCKET SIZE_BYTES SECONDS RATE DEPTH OUT.npy SEED

With RATE writes a second, DEPTH of them are due together, so that they are in flight together; a write that had to wait
for its turn has waited, too. RATE 0: DEPTH in flight all the time, as fast as they are answered. SEED decides where
they go: a second load with the same one writes to the same places, which are the volume's own by then.
"""

from __future__ import annotations

import random
import sys
import time
from array import array
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ground import VOLUME
from replicator.blockdev.nbd_connection import connect
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.nbd.uri import NbdUri
from replicator.units import PAGE_BYTES

CONTENTS = 256
NOISE_BYTES = 2048  # of each page: the rest is zeros, so that zstd halves it


class Load:
    """One connection, and what was answered on it."""

    def __init__(self, pipeline: NbdPipeline, size_bytes: int, seed: int) -> None:
        self._pipeline, self._pages = pipeline, size_bytes // PAGE_BYTES
        self._random = random.Random(seed)
        self._contents = [bytearray(self._random.randbytes(NOISE_BYTES) + bytes(2048)) for _ in range(CONTENTS)]
        self._due_ns: dict[int, int] = {}
        self.answered = array("q")
        self._count = 0

    def write(self, due_ns: int) -> None:
        """Submit one write, which was due then."""
        data = self._contents[self._count % CONTENTS]
        self._count += 1
        data[:8] = self._count.to_bytes(8, "little")
        offset = self._random.randrange(self._pages) * PAGE_BYTES
        self._due_ns[self._pipeline.write(offset, bytes(data))] = due_ns

    def collect(self, minimum: int) -> None:
        """Note what was answered."""
        replies = self._pipeline.collect(minimum)
        now = time.time_ns()
        for reply in replies:
            assert not reply.error, "a write failed"
            self.answered.extend((self._due_ns.pop(reply.request.cookie), now))

    def at_rate(self, seconds: float, rate: float, depth: int) -> None:
        """`depth` at once, as often as makes `rate`."""
        step_ns = int(1e9 * depth / rate)
        due = time.time_ns()
        for _ in range(int(seconds * rate / depth)):
            due += step_ns
            time.sleep(max(0, due - time.time_ns()) / 1e9)
            for _ in range(depth):
                self.write(due)
            while self._due_ns:
                self.collect(1)

    def at_full_speed(self, seconds: float, depth: int) -> None:
        """`depth` in flight all the time."""
        until = time.time_ns() + int(seconds * 1e9)
        while (now := time.time_ns()) < until:
            while len(self._due_ns) < depth:
                self.write(now)
            self.collect(1)
        self.collect(depth)


def main() -> None:
    """Write, and leave the instants in a file."""
    socket, size, seconds, rate, depth, out, seed = sys.argv[1:]
    uri = NbdUri.parse(f"nbd+unix:///{VOLUME}?socket={socket}")
    with NbdPipeline(connect(uri), depth=int(depth)) as pipeline:
        load = Load(pipeline, int(size), int(seed))
        if float(rate):
            load.at_rate(float(seconds), float(rate), int(depth))
        else:
            load.at_full_speed(float(seconds), int(depth))
    np.save(out, np.array(load.answered, dtype=np.int64).reshape(-1, 2))


if __name__ == "__main__":
    main()
