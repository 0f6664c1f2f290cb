"""Opens what a crash left, and says whether that may be: the promises P1, P1b and P2, asked of one image after another.

For each image
  O1  our own check finds nothing at all in it, and nothing after it was opened (tests.support.crash_checks);
  O2  it opens, at a transaction id that may have been reached, with the very devices of the catalogue at that id; what
      was being deleted in slices is deleted to the end;
  O3  every sector of every device holds its last flushed content or a later write (power cut), or the last answered
      one (dead process); snapshots are exact;
  O4  a second opening changes nothing: not a byte of either disk, and nothing is replayed;
  O5  now and then, it goes on working: a write, a snapshot, a flush, and everything else is as it was.
Both thin_checks get what the explorer keeps in `to_judge`: all metadata that is reachable, once for each content.

Whatever is wrong is an AssertionError that names the kind of crash; an error that the pool raises is one, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import xxhash

from replicator.errors import ReplicatorError
from replicator.pool import volumes
from replicator.pool.view import CatalogueView
from tests.support.crash_checks import Checks
from tests.support.crash_disk import CrashJournal, Image, Instant
from tests.support.crash_knowledge import Note, differing, sizes_of
from tests.support.crash_pool import LIVE, CrashPool, opened

OTHER_BOOT = bytes(range(16))
GOES_ON_EVERY = 24  # images that are also written to
_BOOT_ID = slice(16, 32)


@dataclass(frozen=True, slots=True)
class Found:
    """What an image opened as."""

    at_id: int
    contents: dict[int, bytes]


@dataclass(slots=True)
class Explorer:
    """Opens images, each content once; `opened_count` distinct ones so far, by kind of crash."""

    seed: int = 0
    thorough: bool = False
    seen: set[bytes] = field(repr=False, default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    checks: Checks = field(repr=False, default_factory=Checks)
    replayed: int = 0
    chance: random.Random = field(default_factory=random.Random)
    _known: dict[bytes, Found] = field(repr=False, default_factory=dict)
    _contents: dict[bytes, bytes] = field(repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.chance.seed(self.seed)

    @property
    def opened_count(self) -> int:
        """Distinct images."""
        return len(self.seen)

    @property
    def to_judge(self) -> dict[int, bytes]:
        """Reachable metadata, each content once."""
        return self.checks.reachable

    def explore(
        self, journal: CrashJournal, views: dict[int, CatalogueView], first_note: Note, first: int = 0, prefix: str = ""
    ) -> Iterator[tuple[Instant, Image]]:
        """Every crash from event `first` on; yields those of dead processes, for crashes in their recovery."""
        self._known.clear()
        self._contents.clear()
        for instant in journal.instants(first):
            note = instant.note or first_note
            dead = instant.dead_process()
            self.look(dead, note, views, power_cut=False, prefix=prefix)
            yield instant, dead
            for image in instant.power_cuts(self.chance, thorough=self.thorough):
                self.look(self._rebooted(image), note, views, power_cut=True, prefix=prefix)

    def look(
        self, image: Image, note: Note, views: dict[int, CatalogueView], *, power_cut: bool, prefix: str = ""
    ) -> None:
        """One image, opened if it wasn't yet, held against what was known."""
        key = _key(image, power_cut)
        found = self._known.get(key)
        with _told(f"{prefix}{image.kind}"):
            if found is None:
                found = self._known[key] = self._open(image, views)
                if key not in self.seen:
                    self.seen.add(key)
                    self.kinds[prefix + image.kind] += 1
            _explain(found, note, power_cut=power_cut, piece_bytes=image.tear_bytes)

    def _rebooted(self, image: Image) -> Image:
        """`dirty` after another boot: what was written back of it, if anything."""
        dirty = image.dirty
        if self.chance.random() < 0.1:
            return image._replace(dirty=b"")
        return image._replace(dirty=dirty[:16] + OTHER_BOOT + dirty[32:] if dirty else b"")

    def _open(self, image: Image, views: dict[int, CatalogueView]) -> Found:
        self.checks.require_clean(image.metadata)
        with opened(image, views) as crash:
            found, reached = self._once(_read(crash)), crash.pool.view().at_id
            self.replayed += bool(crash.replayed)
        known = crash.catalogue.views
        after = Image(crash.metadata.content(), crash.data.content(), crash.last_dirty, reached, image.kind)
        if crash.replayed or crash.deleting:
            self.checks.require_clean(after.metadata)
            with opened(after, known) as again:
                assert not again.replayed and not again.deleting, "replayed or deleted twice"
            assert (again.metadata.content(), again.data.content()) == (after.metadata, after.data), "changed twice"
        else:
            assert (after.metadata, after.data) == (image.metadata, image.data), "opening changed something"
        if not len(self.seen) % GOES_ON_EVERY:
            self._go_on(after, known, found)
        return found

    def _once(self, found: Found) -> Found:
        """The same with contents that are kept once for all images of a run."""
        kept = {dev: self._contents.setdefault(xxhash.xxh3_128_digest(it), it) for dev, it in found.contents.items()}
        return Found(found.at_id, kept)

    def _go_on(self, image: Image, views: dict[int, CatalogueView], found: Found) -> None:
        """O5."""
        data = self.chance.randbytes(4096)
        contents = dict(found.contents)
        live = [dev_id for dev_id in LIVE if len(contents.get(dev_id, b"")) > len(data)]
        with opened(image, views, live=live) as crash:
            for dev_id in live:
                with crash.engine.gate.writing():
                    crash.engine.devices[dev_id].pwrite(data, 512)
                content = contents[dev_id]
                contents[dev_id] = content[:512] + data + content[512 + len(data) :]
            names = [row.name for row in crash.pool.view().volumes if row.dev_id in live]
            made = [(volumes.create_snapshot(crash.pool, name, f"on-{name}").dev_id, name) for name in names]
            contents.update({dev: contents[crash.pool.view().volume(name).dev_id] for dev, name in made})
            crash.pool.flush()
        self.checks.require_clean(crash.metadata.content())
        last = Image(crash.metadata.content(), crash.data.content(), crash.last_dirty, max(crash.catalogue.views), "on")
        with opened(last, crash.catalogue.views) as again:
            assert _read(again).contents == contents, "going on, something else changed"


@contextmanager
def _told(kind: str) -> Iterator[None]:
    """An error of the pool is a failure of the promise."""
    try:
        yield
    except ReplicatorError as error:
        raise AssertionError(f"{kind}: {type(error).__name__}: {error}") from error
    except AssertionError as error:
        raise AssertionError(f"{kind}: {error}") from error


def _key(image: Image, power_cut: bool) -> bytes:
    whole = xxhash.xxh3_128(image.metadata)
    whole.update(image.data)
    whole.update(image.catalogue_id.to_bytes(8, "little"))
    whole.update(b"" if power_cut else image.dirty[: _BOOT_ID.start] + image.dirty[_BOOT_ID.stop :])
    return whole.digest()


def _read(crash: CrashPool) -> Found:
    view = crash.pool.view()
    sizes = sizes_of(view)
    there = crash.engine.metadata.dev_ids()
    assert sorted(sizes) == there, f"devices {there}, but the catalogue at {view.at_id} has {sorted(sizes)}"
    contents = {dev: crash.engine.open_device(dev, size).pread(size, 0) for dev, size in sizes.items()}
    return Found(crash.opened_at, contents)


def _explain(found: Found, note: Note, *, power_cut: bool, piece_bytes: int) -> None:
    """O2 and O3."""
    assert found.at_id in note.ids(), f"at transaction {found.at_id}, which isn't one of {note.ids()}"
    expected = note.devices(found.at_id)  # what is being deleted has no row any more when that begins
    assert found.contents.keys() == expected.keys(), f"devices {[*found.contents]}, not {[*expected]}"
    for dev_id, content in found.contents.items():
        size = expected[dev_id]
        assert len(content) >= size, f"device {dev_id}: {len(content)} bytes, not {size}"
        wrong = differing(content[:size], note.allowed(found.at_id, dev_id, power_cut=power_cut), piece_bytes)
        assert not wrong, f"device {dev_id} at {found.at_id}: pieces {wrong[:6]} of {piece_bytes} bytes are wrong"
