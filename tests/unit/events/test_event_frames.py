"""Masks, frames and their bounds: pages that changed go in, the same chunks come out, and nothing larger."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zstandard

from replicator.errors import FormatError
from replicator.events.chunks import CODEC_RAW, CODEC_ZSTD, PAYLOAD_BYTES_MAX
from replicator.events.digests import crc32c, digest128, digest128_parts
from replicator.events.frames import Compressor, Decompressor, chunk_hash, written_events
from replicator.events.pages import (
    ALL_PAGES,
    apply_pages,
    changed_pages_many,
    whole_masks,
)
from replicator.units import CHUNK_BYTES, PAGE_BYTES
from tests.support.event_streams import chunk_of, written


def changed(base: bytes, *bytes_at: int) -> bytes:
    out = bytearray(base)
    for at in bytes_at:
        out[at] ^= 0xFF
    return bytes(out)


@pytest.mark.parametrize(
    ("at", "mask"),
    [((), 0), ((0,), 1), ((4095,), 1), ((4096,), 2), ((65535,), 1 << 15), ((0, 8192, 65535), 0x8005)],
)
def test_a_mask_names_the_pages_that_differ(at: tuple[int, ...], mask: int) -> None:
    base = chunk_of(1)
    assert changed_pages_many(base, changed(base, *at)).tolist() == [mask]


def test_masks_of_many_chunks() -> None:
    base = chunk_of(1) * 3
    target = changed(base, 70_000, 2 * CHUNK_BYTES)
    assert changed_pages_many(base, memoryview(bytearray(target))).tolist() == [0, 2, 1]
    assert changed_pages_many(b"", b"").tolist() == []


def test_frames_hold_neighbours_and_come_back() -> None:
    random.seed(5)
    count = 40
    base = b"".join(chunk_of(i) for i in range(count))
    target = changed(base, *(random.randrange(len(base)) for _ in range(100)))
    masks = changed_pages_many(base, target)
    frames = Compressor().pack(np.arange(100, 100 + count, dtype=np.uint64), masks, target)
    assert all(frame.raw_bytes <= 256 * 1024 for frame in frames)
    replica = bytearray(base)
    for body in written_events(frames):
        for chunk, mask, pages, digest in Decompressor().iter_chunks(body):
            at = (chunk - 100) * CHUNK_BYTES
            content = replica[at : at + CHUNK_BYTES]
            apply_pages(content, mask, pages)
            assert chunk_hash(content) == digest
            replica[at : at + CHUNK_BYTES] = content
    assert replica == target


def test_unchanged_chunks_do_not_travel() -> None:
    base = chunk_of(1) * 2
    indices = np.arange(2, dtype=np.uint64)
    assert Compressor().pack(indices, changed_pages_many(base, base), base) == []
    (frame,) = Compressor().pack(indices, np.array([0, 4], dtype="<u2"), base)
    assert frame.chunk_count == 1 and frame.raw_bytes == PAGE_BYTES
    assert list(written_events([])) == []


def test_whole_chunks_go_four_to_a_frame_and_events_end_at_one_mebibyte() -> None:
    count = 40
    data = b"".join(chunk_of(i, compressible=False) for i in range(count))
    frames = Compressor().pack(np.arange(count, dtype=np.uint64), whole_masks(count), data)
    assert [frame.chunk_count for frame in frames] == [4] * 10
    assert {frame.codec for frame in frames} == {CODEC_RAW}
    bodies = list(written_events(iter(frames)))
    assert [body.counts.stored_bytes for body in bodies] == [PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX, 524288]
    assert [body.counts.written_pages for body in bodies] == [256, 256, 128]


def test_tiny_frames_end_an_event_by_their_chunks() -> None:
    count = 5000
    indices, masks = np.arange(count, dtype=np.uint64), np.ones(count, dtype="<u2")
    data = bytes(count * CHUNK_BYTES)
    bodies = list(written_events(Compressor().pack(indices, masks, data)))
    assert [body.chunk_count for body in bodies] == [4096, 904]


def test_a_short_last_chunk_is_padded() -> None:
    assert (
        chunk_hash(b"abc") == chunk_hash(b"abc" + bytes(CHUNK_BYTES - 3)) == digest128(b"abc".ljust(CHUNK_BYTES, b"\0"))
    )
    assert digest128_parts([b"ab", b"", memoryview(b"c")]) == digest128(b"abc")


def test_decompression_is_bounded_by_what_was_declared() -> None:
    expand = Decompressor().expand
    packed = zstandard.ZstdCompressor().compress(bytes(PAGE_BYTES))
    assert expand(CODEC_ZSTD, PAGE_BYTES, packed) == bytes(PAGE_BYTES)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(PAGE_BYTES))
    for codec, raw_bytes, stored in [
        (CODEC_ZSTD, PAGE_BYTES, bomb),
        (CODEC_ZSTD, 1 << 26, bomb),
        (CODEC_ZSTD, PAGE_BYTES, packed[:-1]),
        (CODEC_ZSTD, PAGE_BYTES, packed + b"\0"),
        (CODEC_ZSTD, PAGE_BYTES, packed + packed),
        (CODEC_ZSTD, PAGE_BYTES, nameless),
        (CODEC_ZSTD, PAGE_BYTES, b"not zstd"),
        (CODEC_ZSTD, 2 * PAGE_BYTES, packed),
        (CODEC_RAW, PAGE_BYTES, packed),
        (2, PAGE_BYTES, packed),
    ]:
        with pytest.raises(FormatError):
            expand(codec, raw_bytes, stored)


def test_a_frame_read_alone_is_checked_first() -> None:
    body = written(1, 2)
    ((_, codec, raw_bytes, _, crc),) = body.frame_rows.tolist()
    stored = bytes(body.frames[0])
    assert crc == crc32c(stored)
    assert Decompressor().expand_checked(codec, raw_bytes, stored, crc) == chunk_of(1) + chunk_of(2)
    with pytest.raises(FormatError, match="crc32c"):
        Decompressor().expand_checked(codec, raw_bytes, changed(stored, 3), crc)


def test_a_full_mask_replaces_the_chunk() -> None:
    chunk = bytearray(CHUNK_BYTES)
    apply_pages(chunk, ALL_PAGES, chunk_of(3))
    assert chunk == chunk_of(3)
    apply_pages(chunk, 0b10, bytes(PAGE_BYTES))
    assert chunk[:4096] == chunk_of(3)[:4096] and chunk[4096:8192] == bytes(4096)
