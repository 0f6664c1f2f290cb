"""Restores that are interrupted at a chosen call of their writer, and devices that they are restored to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator._buffer import Buffer
from replicator.repository.restore import RestoreReport, RestoreSettings, plan_restore, restore
from replicator.repository.source import Source
from replicator.repository.target import PlacedWriter, open_placed
from replicator.units import CHUNK_BYTES
from tests.support.faulty_files import CrashError

NOW_NS = 1_800_000_000_000_000_000


class DyingWriter(PlacedWriter):
    """A writer whose `at`-th call kills the process; half of a dying write is done."""

    def __init__(self, real: PlacedWriter, at: int) -> None:
        super().__init__(Path(real.name), real._fd)
        self._calls_left = at
        self.dead = False

    def _call(self) -> None:
        self._calls_left -= 1
        if self._calls_left <= 0:
            self.dead = True
            raise CrashError

    def write(self, data: Buffer, offset_bytes: int) -> None:
        try:
            self._call()
        except CrashError:
            super().write(memoryview(data)[: len(data) // 2], offset_bytes)
            raise
        super().write(data, offset_bytes)

    def cut(self, done_bytes: int, size_bytes: int) -> None:
        self._call()
        super().cut(done_bytes, size_bytes)

    def flush(self) -> None:
        self._call()
        super().flush()

    def read(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._call()
        return super().read(length_bytes, offset_bytes)


def go(
    source: Source, path: Path, at: int = 1 << 30, text: str = "disk-1@latest", *, overwrite: bool = False
) -> RestoreReport:
    """One run, a chunk a piece and two a checkpoint, which dies at its `at`-th call of the writer."""

    def opened_dying(path: Path, *, create: bool = False) -> PlacedWriter:
        return DyingWriter(open_placed(path, create=create), at)

    settings = RestoreSettings(1, CHUNK_BYTES, 2 * CHUNK_BYTES, opened_dying)
    opened = source.open_point(text, now_ns=NOW_NS)
    with opened.disk:
        return restore(plan_restore(opened, str(path), overwrite=overwrite), settings=settings)


def content(source: Source, text: str = "disk-1@latest") -> bytes:
    """The point's bytes."""
    with source.open_point(text, now_ns=NOW_NS).disk as disk:
        return disk.pread(disk.size_bytes, 0)


@contextmanager
def loop_device(folder: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty loop device over a file in `folder`; the states of its restores are kept there, too."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("this host gives no loop devices")
    with (folder / "disk").open("wb") as file:
        file.truncate(size_bytes)
    command = ["losetup", "--find", "--show", str(folder / "disk")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("this host gives no loop devices")
    monkeypatch.setattr("replicator.repository.resume._SYSTEM", folder / "states")
    try:
        yield Path(made.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
