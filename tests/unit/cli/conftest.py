"""A small pool, and an image to put into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.pool_owner import make_pool

IMAGE_BYTES = 4 << 20


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    make_pool(tmp_path / "pool", 16 << 20)
    return tmp_path / "pool"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """4 MiB: data, a hole, data that isn't a whole block, zeros that are written, a hole at the end."""
    path = tmp_path / "disk.img"
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(rng.bytes(300_000))
        file.seek(1 << 20)
        file.write(rng.bytes(5000))
        file.seek(2 << 20)
        file.write(bytes(1 << 19))
        file.truncate(IMAGE_BYTES)
    return path
