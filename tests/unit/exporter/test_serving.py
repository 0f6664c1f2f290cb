"""What a server does with one client: requests of every shape, errors that leave it connected, the end of both."""

from __future__ import annotations

import random
import struct
import threading
from pathlib import Path

import pytest

from replicator.errors import ConflictError
from replicator.exporter.address import UnixAddress, connect_unix
from replicator.exporter.exports import Export, Exports
from replicator.exporter.listener import NbdServer
from replicator.nbd import protocol as p
from replicator.nbd.request import Request
from replicator.thin.change import Change
from tests.support.enginerig import cut
from tests.support.nbd_ground import BLOCK, SIZE, Ground, Serving


def test_requests_of_every_size_come_back(serving: Serving) -> None:
    rng, model = random.Random(5), bytearray(SIZE)
    with serving.client() as client:
        for _ in range(300):
            offset = rng.randrange(SIZE)
            length = min(rng.choice((1, 511, 4096, BLOCK, 3 * BLOCK, 300_000, SIZE)), SIZE - offset)
            if rng.random() < 0.5:
                model[offset : offset + length] = data = rng.randbytes(length)
                assert client.write(offset, data, flags=rng.choice((0, p.CMD_FLAG_FUA))) == 0
            else:
                assert client.read(offset, length) == model[offset : offset + length]


def test_pipelined_requests_are_all_answered(serving: Serving) -> None:
    with serving.client() as client:
        offsets = list(range(0, SIZE, 4096))
        burst = b"".join(Request(p.CMD_WRITE, at, at, 4096).pack() + struct.pack("!Q", at) * 512 for at in offsets)
        sender = threading.Thread(target=client.socket.sendall, args=(burst,))
        sender.start()
        answered = {client.reply()[:2] for _ in offsets}
        sender.join()
        assert answered == {(at, 0) for at in offsets}
        client.socket.sendall(b"".join(Request(p.CMD_READ, at, at, 4096).pack() for at in offsets))
        for _ in offsets:
            at, error, data = client.reply(4096)
            assert error == 0
            assert data == struct.pack("!Q", at) * 512


@pytest.mark.parametrize("piece", [1, 27, 29, 5000])
def test_requests_may_arrive_in_pieces(serving: Serving, piece: int) -> None:
    with serving.client() as client:
        stream = Request(p.CMD_WRITE, 7, 100, 3000).pack() + bytes(range(250)) * 12
        stream += Request(p.CMD_FLUSH, 8).pack()
        for at in range(0, len(stream), piece):
            client.socket.sendall(stream[at : at + piece])
        assert {client.reply()[:2], client.reply()[:2]} == {(7, 0), (8, 0)}
        assert client.read(100, 3000) == bytes(range(250)) * 12


def test_a_cut_freezes_what_was_answered(ground: Ground, serving: Serving) -> None:
    with serving.client() as client:
        client.write(0, b"a" * BLOCK)
        ground.engine.change(Change(lambda metadata: metadata.create_snap(2, 1), cut_devices=[1]))
        serving.exports.put("before", Export(ground.engine.open_device(2, SIZE)))
        client.write(10, b"b" * 10)
        with serving.client(opened=False) as other:
            other.open("before")
            assert other.read(0, BLOCK) == b"a" * BLOCK
            assert other.write(0, b"c") == p.EPERM
        assert client.read(5, 20) == b"a" * 5 + b"b" * 10 + b"a" * 5


def test_writes_after_each_cut_keep_what_stood_around_them(ground: Ground, serving: Serving) -> None:
    rng, span = random.Random(8), 12 * BLOCK
    model, cuts = bytearray(rng.randbytes(span)), dict[int, bytes]()
    with serving.client() as client:
        client.write(0, bytes(model))
        for snapshot in range(2, 6):
            cut(ground.engine, 1, snapshot)
            cuts[snapshot] = bytes(model)
            for length in rng.choices((1, 511, 4096, BLOCK, BLOCK + 4096, 2 * BLOCK + 5), k=15):
                offset = rng.randrange(span - length)
                model[offset : offset + length] = data = rng.randbytes(length)
                assert client.write(offset, data) == 0
            assert client.read(0, span) == model
    for snapshot, content in cuts.items():
        assert ground.engine.open_device(snapshot, SIZE).pread(span, 0) == content


def test_zeroes_and_trims(ground: Ground, serving: Serving) -> None:
    with serving.client() as client:
        client.write(0, b"x" * 4 * BLOCK)
        for command, flags, offset, length, error in (
            (p.CMD_WRITE_ZEROES, 0, 10, 2 * BLOCK, 0),
            (p.CMD_WRITE_ZEROES, p.CMD_FLAG_FAST_ZERO, 3 * BLOCK, 100, p.ENOTSUP),
            (p.CMD_WRITE_ZEROES, p.CMD_FLAG_FAST_ZERO | p.CMD_FLAG_FUA, 3 * BLOCK, 100, p.ENOTSUP),
            (p.CMD_WRITE_ZEROES, p.CMD_FLAG_FAST_ZERO, 3 * BLOCK, BLOCK, 0),
            (p.CMD_WRITE_ZEROES, p.CMD_FLAG_NO_HOLE, 8 * BLOCK, BLOCK, 0),
            (p.CMD_TRIM, p.CMD_FLAG_FUA, 0, BLOCK, 0),
            (p.CMD_CACHE, 0, 0, SIZE, 0),
        ):
            client.send(command, offset, length, flags=flags)
            assert client.reply()[:2] == (offset, error)
        assert client.read(0, 4 * BLOCK) == bytes(2 * BLOCK + 10) + b"x" * (BLOCK - 10) + bytes(BLOCK)
    assert [bool(ground.device.entry(block)) for block in (0, 1, 2, 3, 8)] == [False, False, True, False, True]


def test_nothing_of_a_client_stays_behind(ground: Ground, serving: Serving) -> None:
    with serving.client() as client:
        client.write(0, b"x")
        client.send(p.CMD_DISC)
        assert client.ended()
    serving.server.stop()
    assert not ground.engine.gate._slots
    assert serving.server.connection_count == 0
    assert not serving.path.exists()


def test_a_stop_answers_what_is_in_flight(serving: Serving) -> None:
    with serving.client() as client:
        client.socket.sendall(
            b"".join(Request(p.CMD_WRITE, at, at, 4096).pack() + b"s" * 4096 for at in range(0, SIZE, BLOCK))
            + Request(p.CMD_FLUSH, 1).pack()
        )
        assert client.reply()[1] == 0
        serving.server.stop()
        answers = 1
        while True:
            try:
                assert client.reply()[1] == 0
            except EOFError:
                break
            answers += 1
        assert 1 <= answers <= SIZE // BLOCK + 1


def test_removing_an_export_ends_its_connections_only(ground: Ground, serving: Serving) -> None:
    serving.exports.put("other", Export(ground.device))
    with serving.client(opened=False) as one, serving.client(opened=False) as two:
        one.open("vol")
        two.open("other")
        assert one.read(0, 1) == two.read(0, 1)
        assert serving.exports.remove("vol")
        assert one.ended()
        assert two.read(0, 1) == b"\0"
    assert not serving.exports.remove("vol")


def test_the_default_export(ground: Ground) -> None:
    exports = Exports()
    assert exports.find("") is None
    exports.put("a", Export(ground.device))
    assert exports.find("") == exports.find("a")
    exports.put("b", Export(ground.device, read_only=True))
    assert exports.find("") is None
    assert [offer.name for offer in exports.listed()] == ["a", "b"]
    named = Exports(default="b")
    named.put("b", Export(ground.device))
    assert named.find("") == named.find("b")


def test_listeners_come_and_go(ground: Ground, serving: Serving, tmp_path: Path) -> None:
    second = UnixAddress(tmp_path / "t")
    assert serving.server.listen(second) == second
    with pytest.raises(ConflictError):
        serving.server.listen(second)
    with connect_unix(second.path) as sock:
        assert sock.recv(8) == b"NBDMAGIC"
    assert serving.server.unlisten(second)
    assert not serving.server.unlisten(second)
    assert not second.path.exists()
    assert serving.server.addresses() == [UnixAddress(serving.path)]
    with serving.client() as client:
        assert client.read(0, 1) == b"\0"
    other = NbdServer(ground.engine.gate, serving.exports)
    other.stop()
    with pytest.raises(ConflictError):
        other.listen(second)
