"""Spools: the same bytes in memory and in a file, one allowance for all of them, everything given back."""

from __future__ import annotations

import random
import resource
import tempfile
from pathlib import Path

import pytest

from replicator.errors import NoSpaceError
from replicator.log.spool import Allowance, Spool


@pytest.mark.parametrize("limit", [0, 1000, 5000, 1 << 20])
def test_what_was_written_is_there_wherever_it_lies(limit: int) -> None:
    rng = random.Random(limit)
    allowance = Allowance(limit)
    spool = Spool(allowance)
    sent = b""
    for _ in range(20):
        parts = [rng.randbytes(rng.randrange(0, 300)) for _ in range(3)]
        spool.write([parts[0], bytearray(parts[1]), memoryview(parts[2])])
        sent += b"".join(parts)
    assert b"".join(bytes(part) for part in spool.whole()) == sent and spool.length_bytes == len(sent)
    spool.close()
    assert allowance.take(limit), "all of it was given back"


def test_what_changes_later_was_copied() -> None:
    spool, data = Spool(Allowance()), bytearray(b"before")
    spool.write([data])
    data[:] = b"after!"
    assert b"".join(map(bytes, spool.whole())) == b"before"
    spool.close()


def test_spools_share_one_allowance() -> None:
    allowance = Allowance(100)
    spools = [Spool(allowance) for _ in range(4)]
    for spool in spools:
        spool.write([bytes(40)])
    assert not allowance.take(21) and allowance.take(20), "two of four are in memory"
    assert [len(spool.whole()[0]) for spool in spools] == [40] * 4
    for spool in spools:
        spool.close()
    assert allowance.take(80) and not allowance.take(1)


def test_a_rest_without_room_is_told_as_such_and_let_go_of() -> None:
    allowance = Allowance(0)
    spool = Spool(allowance)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        spool.write([bytes(3000)])  # less than a file's buffer
        with pytest.raises(NoSpaceError, match="too large") as caught:
            spool.whole()
        assert caught.value.mend and "TMPDIR" in caught.value.mend
        spool.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    spool.close()


def test_where_no_directory_is_usable_it_is_told_which_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that begins where TMPDIR is full, or gone; it isn't asked once for all."""
    usable = tmp_path / "later"
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(usable)])
    monkeypatch.setattr(tempfile, "tempdir", None)
    allowance = Allowance(10)
    spool = Spool(allowance)
    spool.write([b"before"])
    with pytest.raises(NoSpaceError, match=f"No usable temporary directory found in .*{usable}") as caught:
        spool.write([bytes(3000)])
    assert caught.value.mend and "TMPDIR" in caught.value.mend
    spool.close()
    assert allowance.take(10), "all of it was given back"
    usable.mkdir()
    spool = Spool(Allowance(0))
    spool.write([b"now"])
    assert b"".join(map(bytes, spool.whole())) == b"now"
    spool.close()
