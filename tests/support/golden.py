"""Golden data, unpacked: what the fixtures of conftest hand to a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard


@dataclass(frozen=True, slots=True)
class KernelPool:
    """A pool that a real kernel wrote: its devices as files, and `facts`, which is pool.json (see its README)."""

    source: Path
    metadata: Path
    data: Path
    facts: dict[str, Any]

    def text(self, name: str) -> str:
        """One of the packed texts: full.xml, held.xml, ops.jsonl."""
        packed = (self.source / f"{name}.zst").read_bytes()
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 24).decode()
