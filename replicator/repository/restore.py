"""Restoring a point to a file, a device or stdout: plan, guards, copy, read back.

The last station: a PointDisk comes in (point), a Target that was allowed (guards) is written (target), progress is kept
beside it (resume), all is read back (readback). Reading, decompressing, hashing and writing go on in a few threads, a
piece each.

A file is written under another name, .NAME.restoring, and takes its own at the end: whatever fails on the way, what
stood at the target is as it was.

    what a crash leaves, line by line      FILE        .NAME.restoring               next `restore` of the same point
    before anything is written             as it was   none                          begins
    made, no state yet                     as it was   empty                         begins
    state written (done 0)                 as it was   empty                         goes on at 0
    cut to what is done, length given      as it was   zeros beyond what is done     goes on at done
    pieces written                         as it was   some beyond what is done      goes on at done, cut to it first
    flushed, state not yet replaced        as it was   more done than the state says goes on at the older done
    all flushed, read back                 as it was   complete                      reads back again
    what an earlier run wrote, and was     as it was   some pieces torn              reads back again, and writes those
    changed since, written once more                                                 once more
    read back, refused by the guards now   as it was   complete                      refused, or reads back again
    renamed                                complete    none                          refused as not empty
    state removed                          complete    none                          refused as not empty

A device is written in place, after its guards, and isn't cut: what it has beyond `done` is overwritten, zeros
included. A failed restore leaves the state, so that another one of the same point goes on: where the target still
holds what was written (resume, R4), and a device, unless it is overwritten, nothing else. One that failed when it was
read back goes on there: by then all that was written is an earlier run's (readback).

Invariants
  E1  Before a plan is refused nothing was written; what is refused later (E4) keeps its bytes, and those restored.
  E2  In memory: 2 pieces a thread, and 16 bytes a piece of what was written.
  E3  When it returns, the target was synced, read back, and equal by the xxh3-128 of every piece (not of streams).
  E4  A file is replaced only if the guards allow it then, too: hours lie between the plan and the new name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Protocol

import numpy as np

from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.events.digests import digest128
from replicator.history.plan import SnapshotBase
from replicator.repository.guards import Machine, Target, TargetKind, inspect_target
from replicator.repository.point import DATA, PointDisk
from replicator.repository.readback import Progress, ReadBack, ReadBackSettings
from replicator.repository.resume import (
    RestoreState,
    drop_state,
    foreign_reason,
    partial_path,
    read_state,
    state_of,
    state_path,
    still_there,
    write_state,
)
from replicator.repository.source import OpenedPoint
from replicator.repository.target import PlacedWriter, StreamWriter, Writer, open_placed, take_name
from replicator.units import CHUNK_BYTES, GIB, MIB, PAGE_BYTES

PIECE_BYTES = MIB
"""Read, hashed and written at once: sixteen chunks, four frames."""

CHECKPOINT_BYTES = GIB
"""How much an interruption costs at most; each one is a sync."""

THREADS_DEFAULT = 4
"""Two cores decompress and hash, the others wait for disks (measured: more gain nothing)."""

_LOOK_BYTES = GIB  # how far ahead runs are asked for at once; whole pieces


class OpenWriter(Protocol):
    """Opens what is written to (target.open_placed)."""

    def __call__(self, path: Path, *, create: bool = False) -> PlacedWriter: ...


@dataclass(frozen=True, slots=True)
class RestoreSettings:
    """What bounds a restore; `piece_bytes` are whole chunks, `checkpoint_bytes` whole pieces."""

    threads: int = THREADS_DEFAULT
    piece_bytes: int = PIECE_BYTES
    checkpoint_bytes: int = CHECKPOINT_BYTES
    open_writer: OpenWriter = open_placed

    def __post_init__(self) -> None:
        assert self.piece_bytes % CHUNK_BYTES == 0 and self.checkpoint_bytes % self.piece_bytes == 0


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do, and what speaks against it; `own` are the source's folders.

    `unfinished`: VOLUME@T:N of another point, whose restore to the same target was interrupted.
    """

    opened: OpenedPoint
    target: Target
    overwrite: bool
    resumes_at: int = 0
    own: tuple[Path, ...] = ()
    unfinished: str = ""

    @property
    def base(self) -> str:
        """What is read first, for people."""
        base = self.opened.plan.base
        if not isinstance(base, SnapshotBase):
            return "nothing (zeros)"
        return f"{'the volume itself,' if base.is_head else 'snapshot'} @{base.revision}"


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did."""

    written_bytes: int
    resumed_at_bytes: int
    verified: bool
    rewritten_bytes: int = 0
    """Of what earlier runs wrote: changed since, and written once more."""


def plan_restore(
    opened: OpenedPoint, to: str, *, overwrite: bool = False, own: tuple[Path, ...] = (), machine: Machine | None = None
) -> RestorePlan:
    """What restoring `opened` to `to` would do; nothing is written."""
    size = opened.disk.size_bytes
    if to == "-":
        return RestorePlan(opened, Target(Path("-"), TargetKind.STREAM, size), overwrite)
    path = Path(to).resolve()
    if not path.name:
        raise UsageError(f"{path} is the root folder", mend="name a file, a block device or -")
    earlier, unfinished = _earlier(opened, path), _unfinished(opened, path)
    left = partial(_left, opened.disk) if earlier is not None else None
    target = inspect_target(to, size, overwrite=overwrite, left=left, own=own, machine=machine)
    if target.kind is not TargetKind.DEVICE and (reason := foreign_reason(path)):
        target = replace(target, refusals=(*target.refusals, reason))
    elif target.kind is TargetKind.DEVICE and target.is_only_full and unfinished:
        reason = f"{target.refusals[-1]}; a restore of {unfinished} to it wasn't finished"
        target = replace(target, refusals=(*target.refusals[:-1], reason))
    return RestorePlan(opened, target, overwrite, earlier.done_bytes if earlier else 0, own, unfinished)


def _earlier(opened: OpenedPoint, path: Path) -> RestoreState | None:
    """The state of an interrupted restore of the same point to the same target, which holds what was written."""
    state = _standing(opened, path)
    if state is None or not state.is_of(state_of(opened, _placed(path))):
        return None
    return state if still_there(opened, _placed(path), state.done_bytes) else None


def _unfinished(opened: OpenedPoint, path: Path) -> str:
    """VOLUME@T:N of an interrupted restore of another point to the same target; empty where there is none."""
    state = _standing(opened, path)
    if state is None or state.is_of(state_of(opened, _placed(path))):
        return ""
    volume = opened.volume.name if state.volume == str(opened.volume.uuid) else state.volume
    return f"{volume}@{state.timeline}:{state.number}"


def _standing(opened: OpenedPoint, path: Path) -> RestoreState | None:
    """The state of an interrupted restore to the same file or device, of whatever point."""
    state, placed = read_state(state_path(path)), _placed(path)
    return state if state is not None and placed.exists() and state.is_at(state_of(opened, placed)) else None


def goes_on(plan: RestorePlan) -> bool:
    """Whether a restore that ended early left something with which the next one of the same point goes on."""
    if plan.target.kind is TargetKind.STREAM:
        return False
    try:
        state = _standing(plan.opened, plan.target.path)
        return state is not None and state.is_of(state_of(plan.opened, _placed(plan.target.path)))
    except OSError:  # of a disk that dies; what ended the restore is told
        return False


def _left(disk: PointDisk, length_bytes: int, offset_bytes: int) -> bytes:
    """What an interrupted restore of the point may have left on a device there."""
    inside = max(0, min(length_bytes, disk.size_bytes - offset_bytes))
    return (disk.pread(inside, offset_bytes) if inside else b"").ljust(length_bytes, b"\0")


def _placed(path: Path) -> Path:
    """What is written to: a device itself, a file under another name."""
    return path if path.is_block_device() else partial_path(path)


def restore(
    plan: RestorePlan,
    progress: Progress = lambda _: None,
    settings: RestoreSettings | None = None,
    *,
    reading_back: Progress = lambda _: None,
) -> RestoreReport:
    """Do what was planned; ConflictError, with nothing written, where something speaks against it (E1).

    `progress` hears up to where it was copied, `reading_back` up to where it was read back.
    """
    settings = settings or RestoreSettings()
    plan.target.require_allowed()
    progress(plan.resumes_at)
    if plan.target.kind is TargetKind.STREAM:
        return to_stream(plan.opened.disk, StreamWriter(), progress, settings)
    placed = _placed(plan.target.path)
    with closing(settings.open_writer(placed, create=plan.target.kind is not TargetKind.DEVICE)) as writer:
        report = _to_place(plan, writer, placed, (progress, reading_back), settings)
        if plan.target.kind is not TargetKind.DEVICE:
            take_name(placed, plan.target.path, replace=_may_replace(plan, placed))
    drop_state(state_path(plan.target.path))
    return report


def _to_place(
    plan: RestorePlan, writer: PlacedWriter, placed: Path, told: tuple[Progress, Progress], settings: RestoreSettings
) -> RestoreReport:
    disk, kept = plan.opened.disk, state_path(plan.target.path)
    size, begin = disk.size_bytes, plan.resumes_at
    state = replace(state_of(plan.opened, placed), done_bytes=begin)
    write_state(kept, state)
    writer.cut(begin, size)
    rewrite = plan.overwrite or plan.target.kind is not TargetKind.DEVICE
    reading = ReadBackSettings(settings.piece_bytes, settings.checkpoint_bytes, rewrite)
    with _Copy(disk, writer, ReadBack(disk, writer, begin, reading), settings) as copy:
        for at in range(begin, size, settings.checkpoint_bytes):
            end = min(at + settings.checkpoint_bytes, size)
            copy.copy(at, end, told[0])
            writer.flush()
            state = replace(state, done_bytes=end)
            write_state(kept, state)
        if begin == size:
            writer.flush()  # an earlier run may have died before what it wrote once more was synced (E3)
        rewritten = copy.read_back(told[1])
    return RestoreReport(copy.written_bytes, begin, True, rewritten)


def _may_replace(plan: RestorePlan, placed: Path) -> bool:
    """Whether there is a file to replace, by the guards as they are now (E4); ConflictError where they forbid it."""
    path = plan.target.path
    try:
        now = inspect_target(str(path), plan.opened.disk.size_bytes, overwrite=plan.overwrite, own=plan.own)
    except (UsageError, NotFoundError) as error:
        raise _changed(plan, placed, error.message) from None
    if now.path != path or now.kind is TargetKind.DEVICE:
        raise _changed(plan, placed, f"it is {now.path} now, a {now.kind}")
    if now.refusals:
        raise _changed(plan, placed, "; ".join(now.refusals))
    return TargetKind.ABSENT not in (plan.target.kind, now.kind)


def _changed(plan: RestorePlan, placed: Path, why: str) -> ConflictError:
    path = plan.target.path
    return ConflictError(
        f"{path} changed while the restore ran: {why}; it stays as it is, and what was restored is whole, in {placed}",
        mend=f"mv {quote(str(placed))} to where it should be; or free {path}"
        f"{'' if plan.overwrite else ' (or add --overwrite)'}, and restore once more: nothing is copied twice",
    )


class _Copy:
    """Pieces on their way from a disk to a place, in threads, bounded (E2)."""

    def __init__(self, disk: PointDisk, writer: PlacedWriter, read_back: ReadBack, settings: RestoreSettings) -> None:
        self._disk, self._writer, self._read_back = disk, writer, read_back
        self._threads, self._piece_bytes = settings.threads, settings.piece_bytes
        self._executor = ThreadPoolExecutor(settings.threads, "restore")
        self.written_bytes = 0

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def copy(self, begin: int, end: int, progress: Progress) -> None:
        """Everything in [begin, end), written and hashed."""
        pending: deque[Future[tuple[int, bytes, int]]] = deque()
        for at, length, has_data in pieces(self._disk, begin, end, self._piece_bytes):
            if has_data:
                pending.append(self._executor.submit(self._piece, at, length))
                if len(pending) >= 2 * self._threads:
                    self._done(pending.popleft(), progress)
            else:
                self._writer.zero(at, length)
                self._read_back.note_zeros(at)
        while pending:
            self._done(pending.popleft(), progress)
        progress(end)

    def _piece(self, at: int, length: int) -> tuple[int, bytes, int]:
        buffer = bytearray(length)
        self._disk.pread_into(buffer, at)
        return at, digest128(buffer), write_sparse(self._writer, buffer, at)

    def _done(self, future: Future[tuple[int, bytes, int]], progress: Progress) -> None:
        at, digest, written = future.result()
        self._read_back.note(at, digest)
        self.written_bytes += written
        progress(at)

    def read_back(self, progress: Progress) -> int:
        """Read all of it back (E3); how many bytes had to be written once more."""
        return self._read_back.check(self._executor, progress)


def pieces(disk: PointDisk, begin: int, end: int, step: int = PIECE_BYTES) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether there may be data) of the pieces of [begin, end), which begins on one."""
    look_bytes = _LOOK_BYTES // step * step
    for look in range(begin, end, look_bytes):
        stop = min(look + look_bytes, end)
        marked = np.zeros(-(-(stop - look) // step), dtype=np.bool_)
        for at, length, state in disk.runs(look, stop - look):
            if state == DATA:
                marked[(at - look) // step : -(-(at + length - look) // step)] = True
        for i, has_data in enumerate(marked.tolist()):
            at = look + i * step
            yield at, min(step, stop - at), has_data


def write_sparse(writer: Writer, data: bytearray, offset_bytes: int) -> int:
    """Write `data` but for its pages of zeros, in order; how many bytes were written."""
    whole = len(data) // PAGE_BYTES * PAGE_BYTES
    words = np.frombuffer(data, dtype=np.uint64, count=whole // 8).reshape(-1, PAGE_BYTES // 8)
    filled = np.zeros(-(-len(data) // PAGE_BYTES), dtype=np.bool_)
    filled[: len(words)] = words.any(axis=1)
    if whole < len(data):
        filled[-1] = any(data[whole:])
    edges = [0, *(np.flatnonzero(filled[1:] != filled[:-1]) + 1).tolist(), len(filled)]
    view, written = memoryview(data), 0
    for first, last in pairwise(edges):
        begin, end = first * PAGE_BYTES, min(last * PAGE_BYTES, len(data))
        if filled[first]:
            writer.write(view[begin:end], offset_bytes + begin)
            written += end - begin
        else:
            writer.zero(offset_bytes + begin, end - begin)
    return written


def to_stream(disk: PointDisk, writer: Writer, progress: Progress, settings: RestoreSettings) -> RestoreReport:
    """Read ahead in threads, written in order."""
    written, threads = 0, settings.threads

    def read(at: int, length: int) -> bytearray:
        buffer = bytearray(length)
        disk.pread_into(buffer, at)
        return buffer

    with ThreadPoolExecutor(threads, "restore") as executor:
        pending: deque[tuple[int, int, Future[bytearray] | None]] = deque()

        def write_first() -> int:
            at, length, future = pending.popleft()
            progress(at)
            if future is None:
                writer.zero(at, length)
                return 0
            return write_sparse(writer, future.result(), at)

        try:
            for at, length, has_data in pieces(disk, 0, disk.size_bytes, settings.piece_bytes):
                pending.append((at, length, executor.submit(read, at, length) if has_data else None))
                if len(pending) >= 2 * threads:
                    written += write_first()
            while pending:
                written += write_first()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    writer.flush()
    progress(disk.size_bytes)
    return RestoreReport(written, 0, False)
