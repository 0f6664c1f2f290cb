"""The incremental backup of a 4 GiB image with 2 % changed: CPU seconds and stored bytes of ours, borg and qemu-img.

    python benchmarks/incremental.py [--files-mib 768] [--changed-mib 82] [--rounds 1] [--folder DIR] [KIND ...]

The image is an ext4 file system with this machine's own files (mkfs.ext4; without it, the files behind one another),
the change is pages that get the content of other files of the machine. Two kinds of change, each in other places:
`files` is nearly all in stretches of 256 KiB, as when files are replaced; of `pages` half is in groups of one to four
pages, as a database writes. All take turns, warm; the first backup isn't measured.

    ours          `replicator agent publish POOL --log LOG`: start, cut, diff, publish; the change came over NBD
    borg          `borg create` of the image into its repository, at its defaults, and with fixed 64 KiB chunks
    qemu-img      `qemu-img rebase` of an overlay: what differs between the images, not compressed

CPU is user and system of each program whole. Stored is what log, repository or overlay grew by; for ours the zstd
size of the changed pages alone, one stream at level 1, stands beside it. A line at the end says how much of `publish`
is the start of the interpreter and its modules.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ground import ROOT, SLIM, VOLUME, cpu_of, keep_bytecode, replicator
from replicator.blockdev.nbd_connection import connect as connect_nbd
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.exporter.supervise import connect
from replicator.nbd.uri import NbdUri
from replicator.pool.control_values import ListenAsked
from replicator.units import CHUNK_BYTES, GIB, MIB, PAGE_BYTES
from tests.support.judges import JudgeMissingError, nbd_tool

IMAGE_BYTES = 4 * GIB
LONG_PAGES = 64
KINDS = {"files": 0.05, "pages": 0.5}
"""How much of a change is in small groups."""

SOURCES = (Path("/usr/lib"), Path("/usr/share"), Path("/usr/bin"), Path("/usr/local"))
FILE_LIMIT_BYTES = 64 * MIB
SEED = 20261
DEPTH = 32
BORG = ROOT / ".cache" / "borg" / "bin" / "borg"
BORG_HINT = (
    "python3 -m venv .cache/borg && .cache/borg/bin/pip install borgbackup==1.4.5"
    " (it is built: on Debian with libacl1-dev liblz4-dev libssl-dev libxxhash-dev libzstd-dev)"
)
BORG_FIXED = ["--chunker-params", f"fixed,{CHUNK_BYTES}"]


def real_files() -> Iterator[Path]:
    """Files of this machine, in a fixed order that mixes kinds."""
    found = []
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            found += [Path(folder) / name for name in names]
    order = np.random.default_rng(SEED).permutation(len(found))
    for place in order.tolist():
        path = found[place]
        if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= FILE_LIMIT_BYTES:
            yield path


def make_image(image: Path, files: Iterator[Path], size_bytes: int) -> None:
    """An ext4 image with about `size_bytes` of real files in it."""
    staging, taken = image.with_suffix(".files"), 0
    staging.mkdir()
    for number, path in enumerate(files):
        folder = staging / f"{number // 256:05}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / f"{number}-{path.name}"[:200])
        taken += path.stat().st_size
        if taken >= size_bytes:
            break
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    try:
        nbd_tool("mkfs.ext4").run("-q", "-F", "-b", PAGE_BYTES, "-d", staging, image)
    except JudgeMissingError:
        with image.open("r+b") as file:
            for path in sorted(staging.rglob("*")):
                if path.is_file():
                    file.write(path.read_bytes())
    shutil.rmtree(staging)


@dataclass(slots=True)
class Change:
    """Pages that get other content."""

    pages: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @property
    def zstd_bytes(self) -> int:
        """What the pages alone come to, as one stream."""
        return len(zstandard.ZstdCompressor(level=1).compress(b"".join(self.contents)))


def used_pages(image: Path) -> list[int]:
    """Pages of the image that hold something."""
    found: list[int] = []
    with image.open("rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return found
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            found += range(at // PAGE_BYTES, end // PAGE_BYTES)
            at = end


def content_of(files: Iterator[Path]) -> Iterator[bytes]:
    """Pages of real files, one behind the other."""
    rest = b""
    for path in files:
        rest += path.read_bytes()
        whole = len(rest) // PAGE_BYTES * PAGE_BYTES
        for at in range(0, whole, PAGE_BYTES):
            yield rest[at : at + PAGE_BYTES]
        rest = rest[whole:]


def make_change(used: list[int], contents: Iterator[bytes], size_bytes: int, kind: str, seed: int) -> Change:
    """Long stretches, then groups of one to four pages; ascending."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    count = size_bytes // PAGE_BYTES
    while len(chosen) < count:
        length = LONG_PAGES if len(chosen) < count * (1 - KINDS[kind]) else int(rng.integers(1, 5))
        begin = int(rng.integers(0, len(used) - length))
        chosen.update(used[begin : begin + length])
    pages = sorted(chosen)
    return Change(pages, [content for _, content in zip(pages, contents, strict=False)])


def chunks_of(change: Change) -> set[int]:
    """The chunks of 64 KiB that it touches."""
    return {page * PAGE_BYTES // CHUNK_BYTES for page in change.pages}


class Ours:
    """A pool that the image was imported into, and its log."""

    name = "ours"

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder, self.pool, self.log = folder, folder / "pool", folder / "log"
        os.environ["REPLICATOR_RUNTIME_DIR"] = str(folder)
        cpu_of(replicator("pool", "create", self.pool, "--size", "8GiB", "--metadata-size", "64MiB"))
        cpu_of(replicator("volume", "import", self.pool, VOLUME, image))
        self.back_up(image)

    def write(self, change: Change) -> None:
        """Over NBD, by an exporter that ends again."""
        socket = self.folder / "nbd.sock"
        with closing(connect(self.pool, started_by="agent", listener=ListenAsked(f"unix:{socket}"))) as pool:
            try:
                uri = NbdUri.parse(f"nbd+unix:///{VOLUME}?socket={socket}")
                with NbdPipeline(connect_nbd(uri), depth=DEPTH) as pipeline:
                    for page, content in zip(change.pages, change.contents, strict=True):
                        if not pipeline.room:
                            assert not any(reply.error for reply in pipeline.collect())
                        pipeline.write(page * PAGE_BYTES, content)
                    assert not any(reply.error for reply in pipeline.collect(DEPTH))
            finally:
                pool.stop()

    def back_up(self, _: Path) -> float:
        """CPU seconds of one publish."""
        return cpu_of(replicator("agent", "publish", self.pool, "--log", self.log))

    def stored_bytes(self) -> int:
        """What the log holds."""
        return stored(self.log)


class Borg:
    """A repository of the image; `arguments` choose the chunker."""

    def __init__(self, name: str, folder: Path, image: Path, arguments: list[str]) -> None:
        self.name, self.repository, self._arguments = name, folder / name.replace(" ", "-"), arguments
        self._env = {"BORG_BASE_DIR": str(folder / "borg"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        self._count = 0
        cpu_of([BORG, "init", "--encryption", "none", self.repository], self._env)
        self.back_up(image)

    def write(self, change: Change) -> None:
        """Nothing of its own to write to: it reads the image."""

    def back_up(self, image: Path) -> float:
        """CPU seconds of one create."""
        self._count += 1
        archive = f"{self.repository}::{self._count}"
        return cpu_of([BORG, "create", *self._arguments, archive, image], self._env)

    def stored_bytes(self) -> int:
        """What the repository holds."""
        return stored(self.repository)


class Qemu:
    """Overlays of what differs from the image of the round before."""

    name = "qemu-img rebase"

    def __init__(self, folder: Path, image: Path) -> None:
        self._before, self._overlay = folder / "before.img", folder / "overlay.qcow2"
        self._tool = nbd_tool("qemu-img")
        copy_sparse(image, self._before)
        self._last: Change | None = None

    def write(self, change: Change) -> None:
        """Bring the image before up to the last round."""
        if self._last is not None:
            write_pages(self._before, self._last)
        self._last = change

    def back_up(self, image: Path) -> float:
        """CPU seconds of one rebase."""
        self._overlay.unlink(missing_ok=True)
        self._tool.run("create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", self._overlay)
        return cpu_of(self._tool.argv("rebase", "-b", self._before, "-F", "raw", self._overlay), self._tool.env())

    def stored_bytes(self) -> int:
        """What the overlay holds, beside its empty predecessor."""
        return self._overlay.stat().st_blocks * 512 if self._overlay.exists() else 0


def stored(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_sparse(source: Path, target: Path) -> None:
    """A copy with the same holes."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def write_pages(image: Path, change: Change) -> None:
    """The change, in a raw file."""
    with image.open("r+b") as file:
        for page, content in zip(change.pages, change.contents, strict=True):
            os.pwrite(file.fileno(), content, page * PAGE_BYTES)


Rival = Ours | Borg | Qemu


def rivals(folder: Path, image: Path) -> list[Rival]:
    """All that are here, with a first backup each."""
    made: list[Callable[[], Rival]] = [lambda: Ours(folder, image)]
    if BORG.exists():
        made.append(lambda: Borg("borg, defaults", folder, image, []))
        made.append(lambda: Borg("borg, fixed 64 KiB", folder, image, BORG_FIXED))
    else:
        print(f"borg isn't here: {BORG_HINT}")
    made.append(lambda: Qemu(folder, image))
    return [make() for make in made]


def report(taken: dict[str, list[tuple[float, int]]], zstd: list[int]) -> None:
    """A line each, with its ratios to ours."""
    ours = taken[Ours.name]
    for name, runs in taken.items():
        cpu, grown = (statistics.median(run[place] for run in runs) for place in (0, 1))
        line = f"{name:<20} {cpu:7.2f} CPU s {grown / MIB:8.1f} MiB stored"
        if name == Ours.name:
            over = statistics.median(run[1] / size for run, size in zip(runs, zstd, strict=True))
            line += f"   {over:.3f} x the zstd size of the changed pages ({statistics.median(zstd) / MIB:.1f} MiB)"
        else:
            line += (
                f"   {statistics.median(run[0] / mine[0] for run, mine in zip(runs, ours, strict=True)):6.1f} x ours"
            )
        print(line, flush=True)


def start_up_s() -> float:
    """CPU seconds of an interpreter that imports what a publish imports."""
    program = "import agent.running, agent.extract, replicator.thin.engine, replicator.log.object_log"
    return statistics.median(cpu_of([sys.executable, "-c", program], SLIM) for _ in range(5))


def measure(contest: list[Rival], image: Path, changes: list[Change]) -> None:
    """Rounds of one kind of change."""
    taken: dict[str, list[tuple[float, int]]] = {rival.name: [] for rival in contest}
    for change in changes:
        write_pages(image, change)
        for rival in contest:
            rival.write(change)
            before = 0 if isinstance(rival, Qemu) else rival.stored_bytes()
            cpu = rival.back_up(image)
            taken[rival.name].append((cpu, rival.stored_bytes() - before))
    report(taken, [change.zstd_bytes for change in changes])


def main() -> None:
    """Make the image, back it up, change it, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="files, pages; both without")
    parser.add_argument("--files-mib", type=int, default=768)
    parser.add_argument("--changed-mib", type=int, default=82)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, image, files = Path(name), Path(name) / "image.raw", real_files()
        keep_bytecode(folder / "bytecode")
        make_image(image, files, given.files_mib * MIB)
        used, contents = used_pages(image), content_of(files)
        print(
            f"image: 4 GiB, {len(used) * PAGE_BYTES / MIB:.0f} MiB in use; {given.changed_mib} MiB change", flush=True
        )
        contest = rivals(folder, image)
        for kind in given.kinds or KINDS:
            seeds = range(SEED, SEED + given.rounds)
            changes = [make_change(used, contents, given.changed_mib * MIB, kind, seed) for seed in seeds]
            assert all(len(each.pages) == len(each.contents) for each in changes), "too few files: --files-mib less"
            print(f"{kind}: {len(chunks_of(changes[0])) * CHUNK_BYTES / MIB:.0f} MiB of chunks hold the change")
            measure(contest, image, changes)
        print(f"of ours, {start_up_s():.2f} CPU s are the start of the interpreter and its modules")


if __name__ == "__main__":
    main()
