"""A pool with thin devices, served over NBD by a process of its own, and told by lines what to do with them.

    python -m tests.support.exporting FOLDER JSON

makes `metadata`, `data` and `dirty` in FOLDER as `Setup` says (or opens those that are there), listens, and prints one
line with its addresses. Then each line on its standard input is an order, answered by one line:

    {"do": "cut", "device": 1, "into": 2, "name": "vol@1"}    a snapshot, exported read-only; "name" may be empty
    {"do": "put", "name": "b", "device": 3, "size": …}        make a device and export it
    {"do": "remove", "name": "b"} · {"do": "resize", "device": 1, "size": …} · {"do": "facts"}

The end of its input, or SIGTERM, is a clean stop.

Invariant S1: `exporting` ends its child, by its id, and finds it ended well.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from replicator.blockdev.file import FileDevice
from replicator.exporter.address import parse_address
from replicator.exporter.connection import Security
from replicator.exporter.exports import Export, Exports
from replicator.exporter.listener import NbdServer, ServerSettings
from replicator.nbd.handshake import Tls
from replicator.pdata.block import Words
from replicator.thin.change import Change
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 60.0
SWITCH_INTERVAL_S = 0.0001


@dataclass(frozen=True, slots=True)
class Setup:
    """A pool to make: names and sizes of its volumes (dev_ids 1, 2, …), and where to listen."""

    listen: tuple[str, ...]
    volumes: dict[str, int] = field(default_factory=lambda: {"vol": 32 << 20})
    block_bytes: int = 65536
    data_bytes: int = 64 << 20
    metadata_bytes: int = 4 << 20
    read_only: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)
    tls: str = "none"
    certificates: str = ""
    connections_max: int = 64


class Child:
    """The process that serves; `order` talks to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.addresses: list[str] = self._answer()["listening"]

    def order(self, do: str, **more: Any) -> dict[str, Any]:
        """Give an order and wait until it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the exporter ended: see its log"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def exporting(folder: Path, setup: Setup) -> Iterator[Child]:
    """Serve a pool in `folder` until the block ends; what the child logs is in `exporter.log` (S1)."""
    folder.mkdir(exist_ok=True)
    argv = [sys.executable, "-m", "tests.support.exporting", str(folder), json.dumps(asdict(setup))]
    with (folder / "exporter.log").open("ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            try:
                yield Child(process)
            except BaseException:
                process.kill()
                raise
            assert process.stdin is not None
            process.stdin.close()
            ended = process.wait(START_LIMIT_S)
    log_text = (folder / "exporter.log").read_text()
    assert ended == 0, log_text
    assert "Traceback" not in log_text, log_text


class _Serving:
    """The child's side."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.metadata, self.data = _devices(folder, setup)
        self.engine, self.replayed = open_engine(self.metadata, self.data, folder / "dirty")
        self.exports = Exports()
        for dev_id, (name, size) in enumerate(setup.volumes.items(), 1):
            origin = FileDevice(Path(setup.origins[name]), read_only=True) if name in setup.origins else None
            device = self.engine.open_device(dev_id, size, origin=origin, read_only=False)
            self.exports.put(name, Export(device, read_only=name in setup.read_only, description=f"volume {name}"))
        settings = ServerSettings(connections_max=setup.connections_max, security=_security(setup))
        self.server = NbdServer(self.engine.gate, self.exports, settings)

    def close(self) -> None:
        self.server.stop()
        self.engine.close()
        self.metadata.close()
        self.data.close()

    def obey(self, do: str, **order: Any) -> dict[str, Any]:
        """Carry out one order."""
        answer: dict[str, Any] = getattr(self, f"do_{do}")(**order)
        return answer

    def do_cut(self, device: int, into: int, name: str) -> dict[str, Any]:
        live = self.engine.devices[device]
        self.engine.change(Change(lambda metadata: metadata.create_snap(into, device), cut_devices=[device]))
        if name:
            snapshot = self.engine.open_device(into, live.size_bytes)
            self.exports.put(name, Export(snapshot))
        return {"pause_s": self.engine.last_pause_s}

    def do_compare(self, name: str, device: int, base: int, label: str) -> dict[str, Any]:
        """Export snapshot `device` anew, to be compared with snapshot `base` under the name `label`."""
        target = self.engine.devices[device]
        changed = _changed_blocks(self.engine, base, device)

        def runs(begin: int, end: int) -> Words:
            blocks = changed[(changed >= begin) & (changed < end)]
            return np.stack((blocks, blocks + np.uint64(1)), axis=1)

        self.exports.put(name, Export(target, changed_since={label: runs}))
        return {}

    def do_put(self, name: str, device: int, size: int) -> dict[str, Any]:
        self.engine.change(Change(lambda metadata: metadata.create_thin(device)))
        self.exports.put(name, Export(self.engine.open_device(device, size, read_only=False)))
        return {}

    def do_remove(self, name: str) -> dict[str, Any]:
        return {"found": self.exports.remove(name)}

    def do_resize(self, device: int, size: int) -> dict[str, Any]:
        found = self.engine.devices[device]
        found.table.resize(-(-size // found.block_bytes))
        found.size_bytes = size
        return {}

    def do_facts(self) -> dict[str, Any]:
        return {
            "connections": self.server.connection_count,
            "commits": self.engine.commit_count,
            "largest_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "free_blocks": self.engine.space.free_count,
            "replayed": self.replayed,
        }


def _changed_blocks(engine: Engine, base: int, target: int) -> Words:
    """What two snapshots don't have in common, by a plain merge: the diff has tests of its own."""
    with engine.lock:
        maps = []
        for dev_id in (base, target):
            pieces = list(engine.metadata.mapped(dev_id, 0, 1 << 40))
            maps.append({int(k): int(v) >> 24 for keys, values in pieces for k, v in zip(keys, values, strict=True)})
    either = maps[0].keys() | maps[1].keys()
    return np.array(sorted(b for b in either if maps[0].get(b) != maps[1].get(b)), dtype=np.uint64)


def _devices(folder: Path, setup: Setup) -> tuple[FileDevice, FileDevice]:
    if (folder / "metadata").exists():
        return FileDevice(folder / "metadata"), FileDevice(folder / "data")
    metadata = FileDevice.create(folder / "metadata", setup.metadata_bytes)
    data = FileDevice.create(folder / "data", setup.data_bytes)
    pool = PoolMetadata.format(metadata, setup.block_bytes, setup.data_bytes // setup.block_bytes, os.urandom(16))
    for dev_id in range(1, len(setup.volumes) + 1):
        pool.create_thin(dev_id)
    pool.commit(data.flush)
    return metadata, data


def _security(setup: Setup) -> Security:
    if setup.tls == "none":
        return Security()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = Path(setup.certificates)
    context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    context.load_verify_locations(folder / "ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return Security(Tls(setup.tls), context)


def main() -> None:
    """Serve until the input ends."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    raw = json.loads(sys.argv[2])
    setup = Setup(**{**raw, "listen": tuple(raw["listen"]), "read_only": tuple(raw["read_only"])})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.closing(_Serving(Path(sys.argv[1]), setup)) as serving:
        bound = [str(serving.server.listen(parse_address(address))) for address in setup.listen]
        print(json.dumps({"listening": bound}), flush=True)
        for line in sys.stdin:
            print(json.dumps(serving.obey(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
