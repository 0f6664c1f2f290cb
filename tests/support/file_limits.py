"""A limit on the length of files for tests, as RLIMIT_FSIZE gives it: beyond it writes are cut short, then refused."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_end_at(limit_bytes: int) -> Iterator[None]:
    """No file may be written beyond this, SQLite's included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
