"""A pool with a volume, and a server over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.exporter.listener import ServerSettings
from tests.support.nbd_ground import Ground, Serving, made_file_ground, serving_ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with made_file_ground(tmp_path) as made:
        yield made


@pytest.fixture
def serving(ground: Ground, tmp_path: Path) -> Iterator[Serving]:
    with serving_ground(ground, tmp_path / "s", ServerSettings(connections_max=4)) as made:
        yield made
