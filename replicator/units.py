"""Sizes, durations and the constants that more than one room measures in.

    sector            512 bytes         the unit of dm-thin's tables and of NBD's minimum
    page              4 KiB             the unit that travels: one bit of a chunk's mask
    chunk             64 KiB            the unit of events, on the 64 KiB grid of the volume
    metadata block    4 KiB             the unit of the pool's metadata device

Sizes are written with binary units (`64KiB`, `10GiB`); a bare number is bytes. `K`, `M`, `G`, `T`
alone are taken as binary too, since block storage means them so; `kB`, `MB` are refused as ambiguous.
"""

from __future__ import annotations

import re

from replicator.errors import UsageError

SECTOR_BYTES = 512
PAGE_BYTES = 4096
CHUNK_BYTES = 65536
PAGES_PER_CHUNK = CHUNK_BYTES // PAGE_BYTES
METADATA_BLOCK_BYTES = 4096

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTPE])?(i?B)?", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", re.ASCII)
_POWER = {None: 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_SECONDS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LARGEST_BYTES = 1 << 63


def parse_size(text: str) -> int:
    """Bytes of `text` ("64KiB", "1.5GiB", "4096"); UsageError for anything that isn't a size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] == "B" and match[2] is not None):
        raise UsageError(f"{text!r} is not a size", mend="write it like 64KiB, 512MiB or 10GiB")
    size = float(match[1]) * 1024 ** _POWER[match[2]] if "." in match[1] else int(match[1]) * 1024 ** _POWER[match[2]]
    if size != int(size) or size >= _LARGEST_BYTES:
        raise UsageError(f"{text!r} is not a whole number of bytes below 8 EiB")
    return int(size)


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people: "64 KiB", "1.5 GiB"; exact below 10 KiB."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) or value >= 100 else f"{value:.1f} {unit}"


def parse_duration(text: str) -> float:
    """Seconds of `text` ("1s", "500ms", "5m", "1h", "2d"); UsageError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a duration", mend="write it like 500ms, 10s, 5m, 1h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """`seconds` for people: "0.8 s", "42 s", "6 h 3 m", "3 d 2 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for small, large, size in (("s", "m", 60), ("m", "h", 60), ("h", "d", 24)):
        if whole < size or (small == "s" and whole < 60):
            return f"{whole} {small}"
        high, low = divmod(whole, size)
        if (large == "m" and high < 60) or (large == "h" and high < 24) or large == "d":
            return f"{high} {large} {low} {small}" if low else f"{high} {large}"
        whole = high
    return f"{whole} d"
