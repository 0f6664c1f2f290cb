"""What tests of a whole agent begin with: a source host with one written volume, and a folder for its daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.units import MIB
from tests.support.agent_world import SourceHost


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceHost]:
    """A pool with one volume; daemons register in a folder of the test's."""
    monkeypatch.setenv("REPLICATOR_RUNTIME_DIR", str(tmp_path / "run"))
    made = SourceHost(tmp_path)
    made.create("disk", 4 * MIB)
    made.write(0, b"first" * 1000)
    yield made
    made.close()
