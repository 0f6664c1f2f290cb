"""What the source attests is compared with what the replica reads; drift is loud, and stays until it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.access import Access
from receiver.attest import Attester
from receiver.dev_ids import DevIds
from receiver.errors import DriftError
from receiver.remember import drift_of, verified_of
from replicator.errors import ReplicatorError
from replicator.events.bodies import VolumeAttested
from replicator.events.digests import digest128
from replicator.events.values import StateName, chunk_count_of
from replicator.pool.catalogue_schema import Purpose
from replicator.thin.mapping import data_blocks
from replicator.thin.view import PoolView
from replicator.units import CHUNK_BYTES, KIB
from tests.support.receivers import assert_prefix, follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume
from tests.support.rivals import given_again, rivalled

SIZE = 21 * CHUNK_BYTES + 512


class Told:
    """What an attester reports."""

    def __init__(self) -> None:
        self.errors: list[ReplicatorError] = []
        self.attester = Attester(lambda: 77, lambda _, error: self.errors.append(error))


@pytest.fixture(params=[64 * KIB, 256 * KIB])
def replica(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ReplicaPool]:
    pool = ReplicaPool(tmp_path, block_bytes=request.param)
    yield pool
    pool.assert_clean()


def attest(source: SourceVolume, span_chunks: int) -> None:
    """The event that a source appends, computed from what it has."""
    data = bytes(source.data)
    count = chunk_count_of(len(data))
    padded = data.ljust(count * CHUNK_BYTES, b"\0")
    hashes = [digest128(padded[chunk * CHUNK_BYTES :][:CHUNK_BYTES]) for chunk in range(count)]
    spans = [digest128(b"".join(hashes[begin : begin + span_chunks])) for begin in range(0, count, span_chunks)]
    assert source.state.committed is not None
    source.put(VolumeAttested(source.state.committed, len(data), span_chunks, b"".join(spans)))


def damage(replica: ReplicaPool, source: SourceVolume) -> int:
    """Change a byte of a mapped block behind everybody's back; its chunk."""
    view = PoolView.live(replica.metadata)
    row = replica.pool.view().volume(source.uuid)
    for keys, values in view.mappings(view.device(row.dev_id).root):
        place = int(data_blocks(values)[0]) * replica.block_bytes
        byte = replica.data.pread(1, place)
        replica.data.pwrite(bytes([byte[0] ^ 1]), place)
        return int(keys[0]) * replica.block_bytes // CHUNK_BYTES
    raise AssertionError("nothing is mapped")


@pytest.mark.parametrize("span_chunks", [1, 4, 1000, 1 << 31])
def test_an_equal_replica_is_verified_by_it(replica: ReplicaPool, span_chunks: int) -> None:
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    for _ in range(3):
        source.transaction(source.scribble())
    attest(source, span_chunks)
    source.publish(log)
    follower(replica, source, log, attester=told.attester).follow(None)
    told.attester.compare_waiting()
    assert not told.errors
    assert verified_of(replica.pool.view()) == {str(source.uuid): (3, 77)}


def test_the_next_transactions_go_on_while_it_waits(replica: ReplicaPool) -> None:
    """The leased head is gone around; what is compared is the attested point."""
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    source.transaction(source.scribble())
    attest(source, 4)
    for _ in range(2):
        source.transaction(source.scribble())
    source.publish(log)
    follower(replica, source, log, attester=told.attester).follow(None)
    assert assert_prefix(replica, source) == 3
    told.attester.compare_waiting()
    assert not told.errors and verified_of(replica.pool.view())[str(source.uuid)] == (1, 77)


def test_a_point_that_went_before_it_was_leased_is_passed_over(replica: ReplicaPool) -> None:
    """T4: what has its id by then isn't compared, and is no drift."""
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    source.transaction(source.scribble())
    attest(source, 4)
    body = source.events[-1].body
    assert isinstance(body, VolumeAttested)
    source.transaction(source.scribble())
    source.publish(log)
    follower(replica, source, log).follow(None)
    (first, *_) = replica.pool.view().snapshots_of(source.uuid, Purpose.POINT)
    name = replica.pool.view().volume(source.uuid).name

    rival = rivalled(replica.pool, "lease", lambda: given_again(replica.pool, first, name, "mine"))
    access = Access(rival, replica.disks, DevIds(replica.pool))
    assert not told.attester.take(access, source.uuid, name, body)
    told.attester.compare_waiting()
    assert not told.errors


def test_drift_is_loud_and_stays_until_it_is_gone(replica: ReplicaPool) -> None:
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    source.transaction(source.scribble())
    source.publish(log)
    one = follower(replica, source, log, attester=told.attester)
    one.follow(None)
    chunk = damage(replica, source)
    attest(source, 2)
    source.publish(log)
    one.follow(None)
    told.attester.compare_waiting()
    (error,) = told.errors
    assert (
        isinstance(error, DriftError)
        and f"from chunk {chunk // 2 * 2}" in error.message
        and "disk-1@1" in error.message
    )
    drift = drift_of(replica.pool.view(), source.uuid)
    assert drift is not None and (drift.number, drift.count, drift.spans) == (1, 1, (chunk // 2,))

    source.data[chunk * CHUNK_BYTES] ^= 255  # the block is written anew, from its own page
    for page in range(16):
        source.data[chunk * CHUNK_BYTES + page * 4096 + 5] ^= 255
    source.transaction()
    attest(source, 2)
    source.publish(log)
    one.follow(None)
    told.attester.compare_waiting()
    assert len(told.errors) == 1 and drift_of(replica.pool.view(), source.uuid) is None


def test_a_newer_attestation_takes_the_older_ones_place(replica: ReplicaPool) -> None:
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    for _ in range(3):
        source.transaction(source.scribble())
        attest(source, 4)
    source.publish(log)
    follower(replica, source, log, attester=told.attester).follow(None)
    told.attester.compare_waiting()
    assert verified_of(replica.pool.view())[str(source.uuid)] == (3, 77)
    told.attester.close()
    assert not [each for each in replica.pool.view().snapshots if each.purpose is Purpose.STAGING]


def test_a_point_that_is_not_here_is_passed_over(replica: ReplicaPool) -> None:
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    for _ in range(2):
        source.transaction(source.scribble())
    source.put(VolumeAttested(StateName(1, 1, bytes(16)), SIZE, 64, digest128(b"whatever it was")))
    source.publish(log)
    follower(replica, source, log, attester=told.attester).follow(None)
    told.attester.compare_waiting()
    assert not told.errors and not verified_of(replica.pool.view())


def test_leases_are_let_go_when_it_closes(replica: ReplicaPool) -> None:
    log, source, told = memory_log(), SourceVolume(8, SIZE), Told()
    source.transaction(source.scribble())
    attest(source, 4)
    source.publish(log)
    follower(replica, source, log, attester=told.attester).follow(None)
    told.attester.close()
    told.attester.run()  # returns at once
    source.transaction(source.scribble())
    source.publish(log)
    follower(replica, source, log).follow(None)
    hidden = [each for each in replica.pool.view().snapshots if each.hidden]
    assert not hidden, "the head was nobody's any more, and was filled in place"
