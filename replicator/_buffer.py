"""`Buffer`: what pread and pwrite take, named once for the type checker (PEP 688 came with Python 3.12)."""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
