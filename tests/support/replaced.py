"""Copies of a pool with all that belongs to its files, and parts of one put into another."""

from __future__ import annotations

import shutil
from pathlib import Path


def copied(pool: Path, to: Path) -> Path:
    """The pool's directory as `cp -a` copies it: extended attributes too."""
    to.mkdir()
    for each in pool.iterdir():
        if each.is_file():
            shutil.copy2(each, to / each.name)
    return to


def replace_part(pool: Path, by: Path, part: str) -> None:
    """Put the other pool's part into its place; of a catalogue also what SQLite keeps beside it."""
    for tail in ("", "-wal", "-shm") if part == "catalog.db" else ("",):
        (pool / f"{part}{tail}").unlink(missing_ok=True)
        if (by / f"{part}{tail}").exists():
            shutil.copy2(by / f"{part}{tail}", pool / f"{part}{tail}")
