"""`mirror.json` is written wholly or not at all, whatever the error's text is and however full the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import DeviceError
from replicator.pdata.mirror import MirrorState, Side
from replicator.pool.mirror_state import STATE, load_state, save_state
from tests.support.file_limits import files_end_at

LARGEST_BYTES = 4096  # one page: what a disk gives or doesn't


def test_a_state_that_is_written_in_part_is_an_error_and_the_old_one_stands(tmp_path: Path) -> None:
    old = MirrorState(Side.FIRST, 5, "gone", 3)
    save_state(tmp_path, old)
    with files_end_at(200), pytest.raises(DeviceError, match=STATE):
        save_state(tmp_path, MirrorState(Side.SECOND, 6, "x" * 500))
    assert load_state(tmp_path) == old
    save_state(tmp_path, MirrorState(Side.SECOND, 6, "x" * 500))
    assert load_state(tmp_path) == MirrorState(Side.SECOND, 6, "x" * 500)


@pytest.mark.parametrize("character", ["\u00e4", "\U0001f4be", "\udcff", "\n", "x"], ids=ascii)
def test_however_an_error_is_spelt_the_state_fits_into_a_page(tmp_path: Path, character: str) -> None:
    state = MirrorState(Side.SECOND, 2**63, character * 100_000, 2**63, dropping=True)
    with files_end_at(LARGEST_BYTES):
        save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert found is not None and found.lost is Side.SECOND
    assert set(found.why) == {character} and len(found.why) > 50
    assert (tmp_path / STATE).stat().st_size < LARGEST_BYTES
