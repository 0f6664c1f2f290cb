"""What reads back otherwise than it was written ends a restore, and not the next one too: that writes it once more."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from replicator._buffer import Buffer
from replicator.errors import ConflictError, DamageError, DeviceError
from replicator.log.object_log import ObjectLog
from replicator.repository.restore import RestoreReport, RestoreSettings, plan_restore, restore
from replicator.repository.resume import partial_path, read_state, state_path
from replicator.repository.source import Source
from replicator.repository.target import PlacedWriter, open_placed
from replicator.units import CHUNK_BYTES, MIB
from tests.support.faulty_files import CrashError
from tests.support.memory_objects import MemoryStore
from tests.support.restoring import NOW_NS, content, go, loop_device
from tests.support.volume_histories import History

SIZE = 40 * CHUNK_BYTES + 1536
AT = 3 * CHUNK_BYTES
"""No sample looks there, nor at ZEROS, when a restore goes on half way or at the end (resume, R4)."""

ZEROS = 14 * CHUNK_BYTES
UNSEEN = 23 * CHUNK_BYTES  # nor do the guards' samples of a device of 300 MiB look there
HALF_WAY, READING = 35, 90  # calls of the writer


class Forgetful(PlacedWriter):
    """A disk that loses what is written at AT."""

    def write(self, data: Buffer, offset_bytes: int) -> None:
        if offset_bytes != AT:
            super().write(data, offset_bytes)


class Unreadable(PlacedWriter):
    """A disk with a sector at AT that can't be read until it is written by a restore that goes on."""

    _goes_on = _is_mended = False

    def cut(self, done_bytes: int, size_bytes: int) -> None:
        self._goes_on = done_bytes > 0
        super().cut(done_bytes, size_bytes)

    def write(self, data: Buffer, offset_bytes: int) -> None:
        self._is_mended |= offset_bytes == AT and self._goes_on
        super().write(data, offset_bytes)

    def read(self, length_bytes: int, offset_bytes: int) -> bytes:
        if offset_bytes == AT and not self._is_mended:
            raise DeviceError("reading", AT, errno.EIO, "Input/output error")
        return super().read(length_bytes, offset_bytes)


@pytest.fixture
def source() -> Source:
    """A log of a volume that is nearly full of data, with zeros at ZEROS."""
    history = History(ObjectLog(MemoryStore(), create=True), random.Random(4), SIZE)
    history.write(0, random.Random(1).randbytes(SIZE))
    history.write(ZEROS, bytes(CHUNK_BYTES))
    history.close()
    return Source("log", log=history.log)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with loop_device(tmp_path, 300 * MIB, monkeypatch) as made:
        yield made


def run(
    source: Source, path: Path, writer: Callable[[Path, int], PlacedWriter] = PlacedWriter, *, overwrite: bool = False
) -> RestoreReport:
    """One restore through such a writer."""

    def opened(path: Path, *, create: bool = False) -> PlacedWriter:
        real = open_placed(path, create=create)
        return writer(path, real._fd)

    point = source.open_point("disk-1@latest", now_ns=NOW_NS)
    with point.disk:
        settings = RestoreSettings(2, CHUNK_BYTES, 8 * CHUNK_BYTES, opened)
        return restore(plan_restore(point, str(path), overwrite=overwrite), settings=settings)


def spoil(path: Path, at: int = AT) -> bytes:
    """Write something else there, as who mounts it or checks it does; what it begins with then."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(8).randbytes(100))
        file.seek(0)
        return file.read(SIZE)


def test_a_write_that_was_lost_is_written_by_the_next_restore(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(DamageError, match=f"at byte {AT}: read back") as caught:
        run(source, path, Forgetful)
    assert "restore once more" in (caught.value.mend or "") and not path.exists()
    report = run(source, path)
    assert (report.resumed_at_bytes, report.written_bytes, report.rewritten_bytes) == (SIZE, 0, CHUNK_BYTES)
    assert path.read_bytes() == content(source) and not state_path(path).exists()


def test_a_disk_that_always_loses_it_is_told_each_time(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    for overwrite in (False, True, True):
        with pytest.raises(DamageError, match=f"at byte {AT}: read back") as caught:
            run(source, path, Forgetful, overwrite=overwrite)
        assert "look at the disk" in (caught.value.mend or "") and not path.exists()


def test_a_sector_that_cannot_be_read_is_written_by_the_next_restore(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(DeviceError, match="Input/output"):
        run(source, path, Unreadable)
    assert run(source, path, Unreadable).rewritten_bytes == CHUNK_BYTES
    assert path.read_bytes() == content(source)


@pytest.mark.parametrize("at", [AT, ZEROS])
def test_what_was_changed_meanwhile_is_written_once_more(source: Source, tmp_path: Path, at: int) -> None:
    """Zeros, too: in a file nothing is written for them otherwise."""
    path = tmp_path / "disk.img"
    with pytest.raises(CrashError):
        go(source, path, HALF_WAY)
    spoil(partial_path(path), at)
    report = go(source, path)
    assert ZEROS < report.resumed_at_bytes < SIZE and report.rewritten_bytes == CHUNK_BYTES
    assert path.read_bytes() == content(source)


class Sequence(PlacedWriter):
    """A disk that keeps what was asked of it, in order; its first flush fails where `fails` says so."""

    calls: ClassVar[list[str]] = []
    fails = False

    def write(self, data: Buffer, offset_bytes: int) -> None:
        self.calls.append("write")
        super().write(data, offset_bytes)

    def read(self, length_bytes: int, offset_bytes: int) -> bytes:
        self.calls.append("read")
        return super().read(length_bytes, offset_bytes)

    def flush(self) -> None:
        self.calls.append("flush")
        if self.fails and "write" in self.calls:
            raise DeviceError("flush", 0, errno.EIO, "Input/output error")
        super().flush()


class Failing(Sequence):
    """The flush behind a write fails: it may still stand in the kernel's cache."""

    fails = True


def test_what_was_written_once_more_and_never_synced_is_synced_before_it_counts(source: Source, tmp_path: Path) -> None:
    """Reading it back finds it in the kernel's cache, whether it is on the disk or not."""
    path = tmp_path / "disk.img"
    with pytest.raises(DamageError):
        run(source, path, Forgetful)
    with pytest.raises(DeviceError, match="flush"):
        run(source, path, Failing)
    Sequence.calls.clear()
    assert run(source, path, Sequence).rewritten_bytes == 0
    assert Sequence.calls.index("flush") < Sequence.calls.index("read") and "write" not in Sequence.calls
    assert path.read_bytes() == content(source)


def test_death_at_every_write_of_it(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    for at in (*range(1, 30), *range(30, 1000, 5)):
        path.unlink(missing_ok=True)
        with pytest.raises(DamageError):
            run(source, path, Forgetful)
        for place in (9 * CHUNK_BYTES - 50, 39 * CHUNK_BYTES - 50):
            spoil(partial_path(path), place)
        try:
            go(source, path, at)
        except CrashError:
            assert not path.exists()
            assert go(source, path).resumed_at_bytes == SIZE
        else:
            assert at > 40, "it was read back, written, and read again"
            break
        assert path.read_bytes() == content(source)
    assert path.read_bytes() == content(source)


def test_a_device_is_not_written_unasked(source: Source, device: Path) -> None:
    """Who changed it may have meant it: that is asked first. With --overwrite nothing else is copied twice."""
    with pytest.raises(CrashError):
        go(source, device, READING)
    changed = spoil(device, UNSEEN)
    for _ in range(2):
        with pytest.raises(ConflictError, match=f"at byte {UNSEEN}: what an interrupted restore") as caught:
            run(source, device)
        assert "--overwrite" in (caught.value.mend or "") and start_of(device) == changed
    report = run(source, device, overwrite=True)
    assert (report.resumed_at_bytes, report.rewritten_bytes) == (SIZE, CHUNK_BYTES)
    assert start_of(device) == content(source) and not state_path(device).exists()


def start_of(device: Path) -> bytes:
    """As much of it as the volume is long."""
    with device.open("rb") as file:
        return file.read(SIZE)


def test_each_stage_tells_how_far_it_is(source: Source, tmp_path: Path) -> None:
    path, copied, read = tmp_path / "disk.img", list[int](), list[int]()
    with pytest.raises(CrashError):
        go(source, path, HALF_WAY)
    state = read_state(state_path(path))
    opened = source.open_point("disk-1@latest", now_ns=NOW_NS)
    with opened.disk:
        settings = RestoreSettings(2, CHUNK_BYTES, 2 * CHUNK_BYTES)
        restore(plan_restore(opened, str(path)), copied.append, settings, reading_back=read.append)
    assert state is not None and copied[0] == state.done_bytes and copied[-1] == SIZE
    assert read[0] == 0 and read[-1] == SIZE and len(set(read)) > 20
    assert copied == sorted(copied) and read == sorted(read)
