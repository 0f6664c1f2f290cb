"""The leanest NBD client that can be had in Python: requests made beforehand, replies counted by their size.

    python benchmarks/nbd_load.py SOCKET EXPORT read|write BLOCK_BYTES DEPTH SIZE_BYTES SECONDS PATTERN FLUSH_EVERY

Prints JSON: operations and seconds. Simple replies of one job all have one length, so that whole ones are counted
without a look inside; the first of each receive that begins at a reply's border is looked at, and must tell of no
error. A client that burns more CPU an operation than the server would measure itself, on a machine of two cores.

PATTERN is random, sequential, or once (4 KiB of every second 64 KiB block, in random order, each once; no time limit).
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replicator.exporter.address import connect_unix
from replicator.nbd import protocol as p
from replicator.nbd.reply import pack_simple
from replicator.nbd.request import Request
from tests.support.nbd_ground import Client

BLOB_BYTES = 16 << 20
STRIDE = 65536
SEED = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What to do, as the command line says it."""

    command: int
    block: int
    depth: int
    size: int
    seconds: float
    pattern: str
    flush_every: int

    def offsets(self) -> list[int]:
        """Where the requests go, in order."""
        rng = random.Random(SEED)
        if self.pattern == "once":
            offsets = list(range(0, self.size, 2 * STRIDE))
            rng.shuffle(offsets)
            return offsets
        count = min(BLOB_BYTES // (self.block if self.command == p.CMD_WRITE else p.REQUEST_BYTES), 1 << 16)
        blocks = self.size // self.block
        if self.pattern == "sequential":
            return [number % blocks * self.block for number in range(count)]
        return [rng.randrange(blocks) * self.block for _ in range(count)]

    def requests(self) -> tuple[bytes, list[int]]:
        """All requests behind one another, and where each begins, with the end."""
        data = random.Random(SEED).randbytes(self.block) if self.command == p.CMD_WRITE else b""
        parts, starts, at = [], [0], 0
        for number, offset in enumerate(self.offsets(), 1):
            parts.append(Request(self.command, 0, offset, self.block).pack() + data)
            if self.flush_every and number % self.flush_every == 0:
                at += len(parts[-1])
                starts.append(at)
                parts.append(Request(p.CMD_FLUSH, 0).pack())
            at += len(parts[-1])
            starts.append(at)
        return b"".join(parts), starts


def run(client: Client, load: Load) -> tuple[int, float]:
    """(operations, seconds), flushes not counted."""
    requests, starts = load.requests()
    blob, count, sock = memoryview(requests), len(starts) - 1, client.socket
    reply = p.SIMPLE_REPLY_BYTES + (load.block if load.command == p.CMD_READ else 0)
    buffer, fine = memoryview(bytearray(4 << 20)), pack_simple(0)
    most = count if load.pattern == "once" else 1 << 62
    sent = done = got = 0
    began = time.perf_counter()
    until = began + load.seconds
    while done < most:
        while sent < min(done + load.depth, most):
            first = sent % count
            last = min(first + done + load.depth - sent, count)
            sock.sendall(blob[starts[first] : starts[last]])
            sent += last - first
        received = sock.recv_into(buffer)
        assert received, "the server closed the connection"
        assert got % reply or received < len(fine) or buffer[: len(fine)] == fine, "a request failed"
        got += received
        done = got // reply
        if load.pattern != "once" and time.perf_counter() > until:
            break
    seconds = time.perf_counter() - began
    return done - (done // (load.flush_every + 1) if load.flush_every else 0), seconds


def main() -> None:
    """Run what the command line says."""
    path, export, command, block, depth, size, seconds, pattern, flush_every = sys.argv[1:]
    kind = p.CMD_READ if command == "read" else p.CMD_WRITE
    load = Load(kind, int(block), int(depth), int(size), float(seconds), pattern, int(flush_every))
    with connect_unix(Path(path)) as sock:
        client = Client(sock)
        client.open(export)
        operations, elapsed = run(client, load)
    print(json.dumps({"operations": operations, "seconds": elapsed}))


if __name__ == "__main__":
    main()
