"""Runs of crash workloads for the tests: which words, each one's crashes, crashes in recoveries, and who counts.

The words of one run differ in their last letter only from shorter words, so a run looks at the crashes during the last
operation alone: the earlier ones are those of the shorter words, which are in the run too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from replicator.pool.view import CatalogueView
from tests.support import judges
from tests.support.crash_disk import CrashJournal, Image
from tests.support.crash_knowledge import Note
from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import LIVE, Base, base_pool, opened
from tests.support.crash_workloads import OPERATIONS, NotApplicableError, Operations, Player

ALL_LETTERS = "".join(OPERATIONS)
CORE_LETTERS = "sdfcAD"  # one of each kind: two writes, a flush, a cut, an applied transaction, a deletion
ROOMY_LETTERS = 3  # as many operations find room for all that is written beside their commits
JUDGED_AT_ONCE = 64
_DIGEST_BYTES = 16


def words(letters: str, length: int) -> list[str]:
    """All words of so many letters."""
    return ["".join(word) for word in product(letters, repeat=length)]


def first_note(base: Base) -> Note:
    """What is known before the first operation."""
    at_id = base.image.catalogue_id
    return Note(at_id, base.views[at_id], {dev_id: (content,) for dev_id, content in base.contents.items()})


def crash_words(
    explorer: Explorer,
    chosen: Iterable[str],
    *,
    nested: bool = False,
    whole: bool = False,
    base: Base | None = None,
    operations: Operations = OPERATIONS,
) -> int:
    """Every crash during the last operation of each word (`whole`: during any); how many words were played."""
    base, played = base or base_pool(), 0
    for word in chosen:
        journal = CrashJournal()
        try:
            with opened(base.image, base.views, journal=journal, live=LIVE) as crash:
                player = Player(crash, base, explorer.seed, operations)
                for letter in word[:-1]:
                    _play_if_it_can(player, letter, must=not whole)
                first = 0 if whole else len(journal.events)
                _play_if_it_can(player, word[-1], must=not whole)
                journal.look_at_dirty()
                roomy = len(word) > ROOMY_LETTERS or operations is not OPERATIONS
                assert roomy or not player.met_room[False], f"{word!r}: a write beside a commit finds no room"
        except NotApplicableError:
            continue
        played += 1
        try:
            for instant, dead in explorer.explore(journal, crash.catalogue.views, first_note(base), first):
                if nested:
                    _crash_in_recovery(explorer, dead, instant.note or first_note(base), crash.catalogue.views)
        except AssertionError as error:
            raise AssertionError(f"workload {word!r}, {error}") from error
    return played


def _play_if_it_can(player: Player, letter: str, *, must: bool) -> None:
    try:
        player.play(letter)
    except NotApplicableError:
        if must:
            raise


def _crash_in_recovery(explorer: Explorer, image: Image, note: Note, views: dict[int, CatalogueView]) -> None:
    """The next opening dies, too, in each of its lines: as a process, or with the machine."""
    inner = Explorer(explorer.seed, explorer.thorough, explorer.seen, explorer.kinds, explorer.checks)
    journal = CrashJournal()
    with opened(image, views, journal=journal) as crash:
        journal.look_at_dirty()
    if crash.replayed or crash.deleting:
        made = crash.catalogue.views
        later = {at: made[at] for at in range(crash.opened_at + 1, crash.pool.view().at_id + 1)}
        for _ in inner.explore(journal, made, note.recovering(crash.opened_at, later), prefix="in recovery: "):
            pass


class Tally:
    """Distinct images over all parts of a run, which may be processes side by side: a file of digests, locked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, digests: set[bytes]) -> tuple[int, int]:
        """How many of `digests` no part had before, and how many there are now in all."""
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = set(_pieces(file.read()))
            new = digests - known
            file.seek(0, os.SEEK_END)
            file.write(b"".join(sorted(new)))
            return len(new), len(known) + len(new)


def _pieces(content: bytes) -> Iterator[bytes]:
    return (content[at : at + _DIGEST_BYTES] for at in range(0, len(content), _DIGEST_BYTES))


def judge(explorer: Explorer, folder: Path, limit: int | None) -> int:
    """Both thin_checks on what the explorer kept (at most `limit` of it, spread evenly); how many they saw."""
    kept = list(explorer.to_judge.values())
    chosen = kept if limit is None else kept[:: max(1, len(kept) // limit)][:limit]
    for low in range(0, len(chosen), JUDGED_AT_ONCE):
        paths = []
        for number, content in enumerate(chosen[low : low + JUDGED_AT_ONCE]):
            paths.append(folder / f"metadata-{number}")
            paths[-1].write_bytes(content)
        judges.assert_clean(*paths)
    return len(chosen)
