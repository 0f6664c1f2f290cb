"""apply(extract(base, target)) on base's bytes is target's bytes; and going on anywhere gives the same events."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agent.delta
from agent.delta import Delta, LeaseLostError
from agent.extract import Extractor, Progress
from replicator.events.bodies import ChunkBody
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.layouts import encode_body
from replicator.events.values import Phase
from replicator.units import CHUNK_BYTES, KIB, MIB
from tests.support.agent_world import VOLUME, SourceHost, apply_body, resized

PHASES = {ChunksDiscarded: Phase.DISCARDS, ChunksZeroed: Phase.ZEROES, ChunksWritten: Phase.WRITES}


def wire(body: ChunkBody) -> bytes:
    return b"".join(bytes(part) for part in encode_body(body))


def applied(base: bytes, size_bytes: int, bodies: list[ChunkBody]) -> bytes:
    content = resized(base, size_bytes)
    for body in bodies:
        apply_body(content, body)
    return bytes(content)


def check(delta: Delta, base: bytes, target: bytes) -> list[ChunkBody]:
    """All bodies: right content, fixed order, within the bound, and the same wherever one goes on."""
    extractor = Extractor(delta)
    bodies = list(extractor.bodies())
    assert applied(base, len(target), bodies) == target
    order = [(PHASES[type(body)], body.first_chunk) for body in bodies]
    assert order == sorted(order)
    assert sum(body.chunk_count for body in bodies) <= extractor.chunk_bound()
    encoded = [wire(body) for body in bodies]
    for index, body in enumerate(bodies):
        progress = Progress(PHASES[type(body)], body.end_chunk)
        assert [wire(rest) for rest in Extractor(delta, threads=1).bodies(progress)] == encoded[index + 1 :]
    return bodies


def scribble(host: SourceHost, rng: random.Random, count: int) -> None:
    size = host.pool.view().volume(VOLUME).size_bytes
    for _ in range(count):
        length = min(size, rng.choice((1, 512, 4096, 9000, 65536, 200_000, 700_000)))
        at = rng.randrange(size - length + 1)
        act = rng.random()
        if act < 0.6:
            host.write(at, rng.randbytes(length))
        elif act < 0.75:
            host.write(at, bytes(length))
        elif act < 0.85:
            host.write(at, (b"the same again " * length)[:length])
        else:
            host.discard(at, length)


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32), block=st.sampled_from((64 * KIB, 128 * KIB, 256 * KIB)))
def test_apply_of_extract_is_the_target(seed: int, block: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        host = SourceHost(Path(folder), block_bytes=block, size_bytes=32 * MIB)
        host.create("disk", rng.choice((CHUNK_BYTES, 3 * MIB, 4 * MIB + 512, 2 * MIB + 7 * 4096)))
        scribble(host, rng, 12)
        first, before = host.snapshot(number=1), host.content()
        with host.delta(None, first) as delta:
            full = check(delta, b"", before)
        assert not any(isinstance(body, ChunksDiscarded | ChunksZeroed) for body in full)
        if rng.random() < 0.5:
            host.pool.resize(VOLUME, rng.choice((MIB, 3 * MIB + 512, 5 * MIB)))
        scribble(host, rng, 8)
        second, after = host.snapshot(number=2), host.content()
        with host.delta(first, second) as delta:
            check(delta, before, after)
        host.close()


@settings(max_examples=10)
@given(seed=st.integers(0, 1 << 32))
def test_an_external_origins_content_travels(seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        origin = Path(folder) / "origin"
        content = bytearray(rng.randbytes(2 * MIB + 512))
        content[MIB : MIB + 3 * CHUNK_BYTES] = bytes(3 * CHUNK_BYTES)
        origin.write_bytes(content)
        host = SourceHost(Path(folder), block_bytes=rng.choice((64 * KIB, 128 * KIB)))
        host.create("disk", rng.choice((2 * MIB, 2 * MIB + 512, 3 * MIB)), origin=origin)
        scribble(host, rng, 4)
        first, before = host.snapshot(number=1), host.content()
        with host.delta(None, first, origin) as delta:
            check(delta, b"", before)
        scribble(host, rng, 6)
        second, after = host.snapshot(number=2), host.content()
        with host.delta(first, second, origin) as delta:
            check(delta, before, after)
        host.close()


def test_many_small_writes_make_several_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and events are cut in the same places wherever reading begins; also when the trees are walked anew."""
    monkeypatch.setattr(agent.delta, "HELD_BLOCKS_MAX", 16)
    host, rng = SourceHost(tmp_path, size_bytes=96 * MIB), random.Random(7)
    host.create("disk", 48 * MIB)
    for chunk in range(0, 768, 2):
        host.write(chunk * CHUNK_BYTES + 4096 * rng.randrange(16), rng.randbytes(4096 * rng.randrange(1, 6)))
    first, before = host.snapshot(number=1), host.content()
    for chunk in range(0, 768):
        if rng.random() < 0.9:
            host.write(chunk * CHUNK_BYTES + 4096 * rng.randrange(16), rng.randbytes(512 * rng.randrange(1, 20)))
    for chunk in rng.sample(range(768), 60):
        host.write(chunk * CHUNK_BYTES, bytes(CHUNK_BYTES))
    second, after = host.snapshot(number=2), host.content()
    with host.delta(first, second) as delta:
        bodies = check(delta, before, after)
    assert sum(isinstance(body, ChunksWritten) for body in bodies) >= 3
    host.close()


def test_only_changed_pages_travel(tmp_path: Path) -> None:
    host = SourceHost(tmp_path)
    host.create("disk", 4 * MIB)
    host.write(0, random.Random(1).randbytes(4 * MIB))
    first = host.snapshot(number=1)
    host.write(17 * 4096, b"x")
    second = host.snapshot(number=2)
    with host.delta(first, second) as delta:
        (body,) = Extractor(delta).bodies()
    assert isinstance(body, ChunksWritten)
    assert (body.chunk_indices.tolist(), body.page_masks.tolist()) == ([1], [0b10])
    host.close()


def test_writing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    host = SourceHost(tmp_path)
    host.create("disk", 4 * MIB)
    host.write(0, b"a" * 10_000)
    first = host.snapshot(number=1)
    host.write(0, b"a" * 10_000)
    host.write(MIB, bytes(5000))
    second = host.snapshot(number=2)
    with host.delta(first, second) as delta:
        extractor = Extractor(delta)
        assert extractor.chunk_bound() == 2
        assert list(extractor.bodies()) == []
    host.close()


def test_nothing_read_is_used_once_the_lease_fell(tmp_path: Path) -> None:
    host = SourceHost(tmp_path)
    host.create("disk", 4 * MIB)
    host.write(0, b"a" * 10_000)
    target = host.snapshot(number=1)
    with host.delta(None, target) as delta:
        host_lease = Delta(delta.files, None, delta.target, stands=lambda: False)
        with pytest.raises(LeaseLostError):
            list(Extractor(host_lease).bodies())
    host.close()
