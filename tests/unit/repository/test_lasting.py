"""A disk whose lease falls is opened again, and nothing that was read under a fallen lease is given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replicator._buffer import Buffer
from replicator.errors import DamageError, UnavailableError
from replicator.repository.lasting import LastingDisk


class Leased:
    """A disk whose lease `falls` before its n-th read."""

    name, size_bytes = "vm1@3", 8

    def __init__(self, byte: int, falls: int = -1) -> None:
        self._byte, self._left, self.closed = byte, falls, 0

    def _read(self) -> None:
        self._left -= 1
        if self._left == 0 or self.closed:
            self._left = 1
            raise UnavailableError("its lease fell")

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        memoryview(target)[:] = bytes([self._byte]) * len(target)
        self._read()

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        yield offset_bytes, length_bytes, 0
        self._read()

    def close(self) -> None:
        self.closed += 1


def read(disk: LastingDisk) -> int:
    target = bytearray(4)
    disk.pread_into(target, 0)
    return target[0]


def test_it_is_opened_again_when_its_lease_fell() -> None:
    disks = [Leased(1, falls=3), Leased(2, falls=2), Leased(3)]
    later = iter(disks[1:])
    with LastingDisk(disks[0], lambda: next(later)) as disk:
        assert [read(disk) for _ in range(2)] == [1, 1]
        assert read(disk) == 2
        assert list(disk.runs(0, 8)) == [(0, 8, 0)]
        assert read(disk) == 3
        assert [each.closed for each in disks] == [1, 1, 0]
    assert [each.closed for each in disks] == [1, 1, 1]


def test_while_nobody_has_the_pool_reads_fail_and_then_go_on() -> None:
    answers: list[Leased | None] = [None, None, Leased(7)]

    def again() -> Leased:
        found = answers.pop(0)
        if found is None:
            raise UnavailableError("nobody answers")
        return found

    disk = LastingDisk(Leased(1, falls=1), again)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="nobody answers"):
            read(disk)
    assert read(disk) == 7


def test_damage_is_no_fallen_lease() -> None:
    class Damaged(Leased):
        def _read(self) -> None:
            raise DamageError("a bit flipped")

    disk = LastingDisk(Damaged(1), lambda: Leased(2))
    with pytest.raises(DamageError):
        read(disk)
