"""Every operation of a pool without room, of data or of metadata, and again once it was grown (P8).

What finds no room is refused and changes nothing but what a client wrote of it; flushes are answered, reads go on,
nothing that was answered is lost; trims and deletes are done with next to nothing free; once grown, all goes on.
"""

from __future__ import annotations

import pytest

from replicator.errors import NoSpaceError
from replicator.thin import space
from tests.support.crash_disk import Image
from tests.support.crash_knowledge import Note, differing
from tests.support.crash_oracle import Explorer
from tests.support.crash_pool import ROOMY_BLOCKS, CrashPool, base_pool, opened
from tests.support.crash_workloads import OPERATIONS, Player

LETTERS = [letter for letter in OPERATIONS if letter not in "er"]
FREE_DATA = (0, 1, 2)
FREE_METADATA = (32, 44, 56, 68, 80, 92)  # from what no write and no cut may take, to what lets each of them be done
DONE_FROM = {"D": 32, "V": 32, "P": 32, "M": 32, "E": 32, "f": 32, "o": 32, "d": 56}  # trims, deletes, growing (P8)
GROWTHS = 16


@pytest.fixture(autouse=True)
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data blocks come by fours, so that few are left unused in the stock."""
    monkeypatch.setattr(space, "STOCK_BLOCKS", 4)


def leave(crash: CrashPool, what: str, free: int) -> None:
    """Take all room but this; only then are volumes opened for writing."""
    if what == "data":
        crash.pool.reserve(crash.engine.space.free_count - free)
    else:
        with crash.engine.lock:
            counts = crash.engine.metadata.transaction.metadata.counts
            counts.take(counts.free_count - free)
    for name in "ab":
        row = crash.pool.view().volume(name)
        crash.pool.open_live(row.dev_id, row.size_bytes, None)


def attempt(player: Player, letter: str) -> bool:
    """Play it; False when there was no room for it."""
    try:
        player.play(letter)
    except NoSpaceError:
        reread(player)
        return False
    return True


def reread(player: Player) -> None:
    """What a refused operation left: every sector as it was, or as it would have been."""
    assert player.crash.engine.failed is None
    note = player.crash.journal.note
    assert isinstance(note, Note)
    for dev_id, versions in player.versions.items():
        content = player.crash.engine.open_device(dev_id, len(versions[-1])).pread(len(versions[-1]), 0)
        allowed = [versions[-1], *note.under_way.get(dev_id, ())]
        assert not differing(content, allowed, 512), f"device {dev_id}"
        if content != versions[-1]:
            player.versions[dev_id] = (*versions, content)
    player.knows()


def one_run(letter: str, what: str, free: int) -> bool:
    """Whether it was refused at first."""
    base = base_pool(ROOMY_BLOCKS)
    with opened(base.image, base.views) as crash:
        leave(crash, what, free)
        player = Player(crash, base)
        refused = not attempt(player, letter)
        player.flush()
        growths = 0
        while refused and growths < GROWTHS:
            growths += 1
            player.play("P" if what == "data" else "M")
            if attempt(player, letter):
                break
        assert growths < GROWTHS, f"{letter!r} is refused still after {growths} times as much room"
        player.flush()
        note, at_id = crash.journal.note, crash.pool.view().at_id
    image = Image(crash.metadata.content(), crash.data.content(), crash.last_dirty, at_id, f"after {letter!r}")
    Explorer().look(image, note, crash.catalogue.views, power_cut=False)
    return refused


@pytest.mark.parametrize("letter", LETTERS)
def test_an_operation_without_data_space(letter: str) -> None:
    refused = [free for free in FREE_DATA if one_run(letter, "data", free)]
    print(f"\n{letter!r}: refused with {refused} data blocks free")
    assert letter in "swnxqbzmgkcEAS" or not refused


@pytest.mark.parametrize("letter", LETTERS)
def test_an_operation_without_metadata_space(letter: str) -> None:
    refused = [free for free in FREE_METADATA if one_run(letter, "metadata", free)]
    print(f"\n{letter!r}: refused with {refused} metadata blocks free")
    assert all(free < DONE_FROM.get(letter, 200) for free in refused)
