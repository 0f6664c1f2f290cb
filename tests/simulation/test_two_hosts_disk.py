"""The simulated disk against one array of bytes (K1 and K2 of tests.support.two_hosts_disk)."""

from __future__ import annotations

import random

import pytest

from replicator.errors import DeviceError
from tests.support.two_hosts_disk import Content, Disk


def _disk(content: Content) -> Disk:
    return Disk(content, "disk", lambda: None)


@pytest.mark.parametrize("seed", range(50))
def test_it_reads_as_one_array_of_bytes(seed: int) -> None:
    rng = random.Random(seed)
    grain = rng.choice((4, 16, 64))
    size = grain * rng.randrange(1, 9)
    model = bytearray(rng.randbytes(size) if seed % 2 else size)
    disk = _disk(Content.of(bytes(model), grain))
    for _ in range(60):
        offset = rng.randrange(size)
        length = rng.randrange(size - offset + 1)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            disk.pwrite(data, offset)
            model[offset : offset + length] = data
        assert disk.pread(length, offset) == bytes(model[offset : offset + length])
    assert disk.content().get(size, 0) == bytes(model)


def test_an_image_stays_as_it_was() -> None:
    disk = _disk(Content.of(bytes(range(64)), 16))
    image = disk.content()
    disk.pwrite(b"x" * 20, 10)
    assert image.get(64, 0) == bytes(range(64))


def test_disks_of_one_content_go_on_by_themselves() -> None:
    before = bytes(range(64))
    content = Content.of(before, 16)
    written, other = _disk(content), _disk(content)
    written.pwrite(b"x" * 20, 10)
    written.pwrite(b"y" * 16, 48)  # a whole grain
    assert written.pread(64, 0) == before[:10] + b"x" * 20 + before[30:48] + b"y" * 16
    assert other.pread(64, 0) == before == content.get(64, 0)
    other.rot(5)
    assert written.pread(6, 0) == before[:6] == content.get(6, 0)


def test_a_power_cut_keeps_what_was_flushed_and_tears_the_rest_at_a_sector() -> None:
    found = set()
    for seed in range(60):
        disk = _disk(Content(4096, 4096))
        disk.pwrite(b"a" * 1024, 0)
        disk.flush()
        disk.pwrite(b"b" * 1024, 0)
        found.add(disk.after_power_cut(random.Random(seed)).get(4096, 0))
    endings = {b"a" * 1024, b"b" * 1024, b"b" * 512 + b"a" * 512}
    assert found == {each.ljust(4096, b"\0") for each in endings}


def test_a_power_cut_never_keeps_a_part_of_a_sector_over_what_the_write_never_stood_on() -> None:
    """The kernel's cache had the whole sector; the disk has it as of some instant."""
    found = set()
    for seed in range(60):
        disk = _disk(Content.of(b"a" * 1024, 4096))
        disk.pwrite(b"b" * 1024, 0)
        disk.pwrite(b"c" * 100, 700)
        found.add(disk.after_power_cut(random.Random(seed)).get(1024, 0))
    second = {b"a" * 512, b"b" * 512, b"b" * 188 + b"c" * 100 + b"b" * 224}
    assert {each[512:] for each in found} == second
    assert {each[:512] for each in found} == {b"a" * 512, b"b" * 512}


def test_nothing_is_read_or_written_beyond_its_end() -> None:
    disk = _disk(Content(64, 16))
    with pytest.raises(DeviceError):
        disk.pwrite(b"x" * 8, 60)
    with pytest.raises(DeviceError):
        disk.pread(8, 60)
