"""X1 to X3 of exporter/control, R1 and R2 of exporter/reservations and of pool/remote."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from replicator.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    ReplicatorError,
    UnavailableError,
    UsageError,
)
from replicator.exporter.control import ControlServer, Identity
from replicator.pool import sockets, volumes
from replicator.pool.control import (
    PROTOCOL_VERSION,
    Frame,
    FrameStream,
    HelloAnswer,
    HelloAsked,
    Kind,
    body_of_request,
    error_of,
)
from replicator.pool.control_connection import ControlConnection
from replicator.pool.control_values import Blocks, DevIds, ExportFacts, ListenAsked, Nothing
from replicator.pool.interface import CutRequest, Filling, Switch
from replicator.pool.locks import PoolLock
from replicator.pool.opening import OwnedPool, open_pool, own_pool
from replicator.pool.remote import RemotePool
from tests.support.pool_owner import make_pool, served

HELLO = Frame(Kind.REQUEST, 1, body_of_request("hello", HelloAsked(PROTOCOL_VERSION, 1)))


class Serving:
    """What the exporter does for clients, as the exporter would."""

    def __init__(self) -> None:
        self.served: list[ExportFacts] = []
        self.stopped = threading.Event()

    def listen(self, asked: ListenAsked) -> list[ExportFacts]:
        if asked.address == "tcp:bad":
            raise ConflictError("in use", mend="take another")
        self.served += [ExportFacts(name, 1, 5, asked.read_only, asked.address) for name in asked.names]
        return self.served

    def exports(self) -> list[ExportFacts]:
        return self.served

    def listeners(self) -> list[ListenAsked]:
        return [ListenAsked(each.address, [each.name], each.read_only) for each in self.served]

    def let_go(self, dev_ids: Collection[int]) -> AbstractContextManager[None]:
        return nullcontext()

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A pool with two devices, served."""
    make_pool(tmp_path / "pool")
    with served(tmp_path / "pool", Serving(), Identity("agent", {"interval": "1s"})) as owned:
        owned.switch(Switch(create=(1, 2)))
        yield owned


def _until(path: Path, happened: Callable[[], bool]) -> None:
    """Ask the owner again until it has noticed; the test's own time limit ends it."""
    with RemotePool(path) as near:
        while not happened():
            near.status()


def _talk(path: Path, *sent: bytes) -> list[Frame]:
    """All that the owner answers to these bytes before it hangs up, or has answered each."""
    with sockets.connect(path, "control", 20) as connection:
        stream, got = FrameStream("test"), list[Frame]()
        for data in sent:
            connection.sendall(data)
        while len(got) < len(sent) and (data := connection.recv(65536)):
            got += stream.receive(data)
    return got


def test_the_owner_says_who_it_is(pool: OwnedPool) -> None:
    with open_pool(pool.path) as near:
        assert isinstance(near, RemotePool)
        owner = near.owner
        assert (owner.pid, owner.started_by, owner.settings) == (os.getpid(), "agent", {"interval": "1s"})
        assert owner.pool == str(pool.view().pool.uuid) and near.stands


def test_the_exporters_own_calls_go_through(pool: OwnedPool) -> None:
    with RemotePool(pool.path) as near:
        asked = ListenAsked("unix:/x", ["a", "b"], read_only=True)
        assert [each.name for each in near.listen(asked)] == ["a", "b"] == [each.name for each in near.exports()]
        assert near.listeners() == [ListenAsked("unix:/x", [name], True) for name in ("a", "b")]
        with pytest.raises(ConflictError, match="in use") as refusal:
            near.listen(ListenAsked("tcp:bad"))
        assert refusal.value.mend == "take another"
        near.stop()


def test_a_pool_without_disks_has_no_listeners(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    with served(tmp_path / "pool"), RemotePool(tmp_path / "pool") as near:
        assert near.exports() == []
        for call in (near.stop, lambda: near.listen(ListenAsked("x"))):
            with pytest.raises(ConflictError, match="serves no disks"):
                call()


@pytest.mark.parametrize("dev_id", [-1, 1 << 24])
def test_ids_that_no_device_can_have_are_refused_and_the_pool_goes_on(pool: OwnedPool, dev_id: int) -> None:
    """E4 of thin/engine, too: one client's mistake is nobody else's."""
    volume = volumes.create_volume(pool, "disk", 1 << 20)
    with RemotePool(pool.path) as near:
        for wrong in (Switch(create=(dev_id,)), Switch(snapshot=((dev_id, volume.dev_id),))):
            with pytest.raises(UsageError, match="device id"):
                near.switch(wrong)
        for vain in (
            Switch(delete=(dev_id,)),
            Switch(snapshot=((40, dev_id),)),
            Switch(fill=(Filling(dev_id),)),
        ):
            with pytest.raises(NotFoundError):
                near.switch(vain)
        assert near.facts([dev_id]) == {}
        with pytest.raises(NotFoundError), near.lease([dev_id]):
            pass
        assert near.cut(CutRequest(uuid4(), (volume.uuid,), unless_equal=(dev_id,))).made
        near.flush()
    assert pool.engine.failed is None


def test_leases_end_with_their_connection(pool: OwnedPool) -> None:
    """X1: released, hung up, or with the server."""
    near = RemotePool(pool.path)
    first, second = near.take_lease((1,)), near.take_lease((1, 2))
    assert first.stands and second.stands and pool.is_leased(1) and pool.is_leased(2)
    second.release()
    assert not second.stands and not pool.is_leased(2)
    assert pool.is_leased(1) and first.stands
    near.close()
    assert first.stands, "a lease has a connection of its own"
    first.release()
    first.release()
    assert not pool.is_leased(1)
    dying = ControlConnection(pool.path, "own")
    dying.call("lease", DevIds([1]), 20)
    assert pool.is_leased(1)
    dying.close()
    _until(pool.path, lambda: not pool.is_leased(1))


def test_a_lease_of_what_is_not_there_is_refused(pool: OwnedPool) -> None:
    with RemotePool(pool.path) as near:
        with pytest.raises(NotFoundError), near.lease((1, 9)):
            pass
        assert near.status() is not None
    assert not pool.is_leased(1)


def test_reservations_end_with_their_connection(pool: OwnedPool) -> None:
    """X1; what a switch has mapped stays mapped."""
    free = pool.status().data_free_blocks
    near = RemotePool(pool.path)
    blocks = near.reserve(10)
    near.switch(Switch(fill=(Filling(1, np.arange(4, dtype=np.uint64), blocks[:4]),)))
    assert pool.status().data_free_blocks == free - 10
    near.close()
    _until(pool.path, lambda: pool.status().data_free_blocks == free - 4)
    assert pool.facts((1,))[1].mapped_blocks == 4


def test_only_ones_own_reserved_blocks_are_mapped_or_given_back(pool: OwnedPool) -> None:
    """R1 of reservations: not free ones, not another's, none twice; a failed switch leaves them reserved."""
    with RemotePool(pool.path) as near, RemotePool(pool.path) as other:
        mine, theirs = near.reserve(4), other.reserve(4)
        keys = np.arange(2, dtype=np.uint64)
        for crooked in (
            np.array([mine[0], mine[0]]),
            np.array([mine[0], max(theirs.max(), mine.max()) + np.uint64(1)]),
        ):
            with pytest.raises(ConflictError, match="reserved"):
                near.switch(Switch(fill=(Filling(1, keys, crooked),)))
        with pytest.raises(ConflictError, match="weren't reserved"):
            near.give_back(theirs)
        with pytest.raises(ConflictError, match="weren't reserved"):
            near.give_back(np.array([mine[0], mine[0]]))
        with pytest.raises(NotFoundError):
            near.switch(Switch(fill=(Filling(9, keys, mine[:2]),)))
        near.switch(Switch(fill=(Filling(1, keys, mine[:2]),)))
        near.give_back(mine[2:])
        with pytest.raises(ConflictError):
            near.give_back(mine[2:])


def test_a_client_that_was_cut_off_gets_nothing_taken_away(pool: OwnedPool) -> None:
    """R2 of reservations: it may still be writing into its blocks."""
    free = pool.status().data_free_blocks
    with sockets.connect(pool.path, "control", 20) as connection:
        connection.sendall(HELLO.pack())
        reserve = body_of_request("reserve", {"count": 10})
        connection.sendall(Frame(Kind.REQUEST, 2, reserve).pack() + b"rubbish")
        while connection.recv(65536):
            pass
    assert pool.status().data_free_blocks == free - 10


def test_a_client_that_dies_before_it_reads_its_answer_loses_no_blocks(pool: OwnedPool) -> None:
    """X1: the kernel says ECONNRESET then, and not the end."""
    free = pool.status().data_free_blocks
    for _ in range(5):
        with sockets.connect(pool.path, "control", 20) as connection:
            connection.sendall(HELLO.pack())
            connection.sendall(Frame(Kind.REQUEST, 2, body_of_request("reserve", {"count": 10})).pack())
    _until(pool.path, lambda: pool.status().data_free_blocks == free)


def test_writers_is_held_while_blocks_are_reserved(pool: OwnedPool) -> None:
    """R2 of remote: a new owner would wait for this client."""
    near = RemotePool(pool.path)
    near.reserve(1)
    pool.close()
    with pytest.raises(ConflictError, match="still writes"):
        PoolLock.only_writer(pool.path, wait_s=0)
    near.close()
    PoolLock.only_writer(pool.path, wait_s=0).release()


def test_calls_fail_when_the_owner_has_gone_and_leases_fall(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        owned.switch(Switch(create=(1,)))
        server = ControlServer(owned, owned.path, pid=os.getpid())
        near = RemotePool(owned.path)
        lease = near.take_lease((1,))
        assert lease.stands and near.stands
        server.close()
        assert not lease.stands and not near.stands and not owned.is_leased(1)
        with pytest.raises(UnavailableError):
            near.status()
        with ControlServer(owned, owned.path, pid=os.getpid()):
            for call in (near.status, near.view, lambda: near.take_lease((1,)), lambda: near.reserve(1)):
                with pytest.raises(UnavailableError):
                    call()
            with RemotePool(owned.path) as again:
                assert again.status().owner_pid == os.getpid()
        lease.release()
        near.close()


@pytest.mark.parametrize(
    ("sent", "kind", "text"),
    [
        ([b"GET / HTTP/1.1\r\n\r\n"], FormatError, "magic"),
        ([Frame(Kind.ANSWER, 1, b"").pack()], FormatError, "a request"),
        ([Frame(Kind.REQUEST, 1, body_of_request("status", Nothing())).pack()], ConflictError, "hello"),
        ([Frame(Kind.REQUEST, 1, b"\xc1").pack()], FormatError, "request"),
        ([Frame(Kind.REQUEST, 1, bytes(5000)).pack()], FormatError, "at most 4096"),
        ([HELLO.pack(), Frame(Kind.REQUEST, 2, body_of_request("nonsense", Nothing())).pack()], NotFoundError, "nons"),
        ([HELLO.pack(), Frame(Kind.REQUEST, 2, body_of_request("lease", Nothing())).pack()], FormatError, "lease"),
        ([HELLO.pack(), Frame(Kind.REQUEST, 2, body_of_request("resize", [])).pack()], FormatError, "resize"),
        ([HELLO.pack(), Frame(Kind.REQUEST, 2, body_of_request("give_back", Blocks(b"123"))).pack()], FormatError, "8"),
        ([HELLO.pack(), Frame(Kind.REQUEST, 2, body_of_request("lease", DevIds([1 << 60]))).pack()], NotFoundError, ""),
    ],
)
def test_rubbish_is_answered_by_its_error_and_disturbs_nobody(
    pool: OwnedPool, sent: list[bytes], kind: type[ReplicatorError], text: str
) -> None:
    """X2."""
    with RemotePool(pool.path) as near:
        found = _talk(pool.path, *sent)[-1]
        assert found.kind is Kind.ERROR
        error = error_of(found.body)
        assert type(error) is kind and text in error.message
        assert near.status().transaction_id == pool.view().at_id


def test_a_client_older_than_the_owner_is_refused(pool: OwnedPool) -> None:
    """By the owner too: it can't know what its successor's calls would mean to it."""
    old = Frame(Kind.REQUEST, 1, body_of_request("hello", HelloAsked(PROTOCOL_VERSION - 1, 1)))
    (found,) = _talk(pool.path, old.pack())
    error = error_of(found.body)
    assert isinstance(error, ConflictError) and error.mend is not None and "update" in error.mend


def test_a_client_refuses_an_owner_that_is_newer(tmp_path: Path) -> None:
    hello = HelloAnswer(PROTOCOL_VERSION + 1, 77, "own", {}, "", 65536, "x")
    _against(tmp_path, Frame(Kind.ANSWER, 1, msgspec.msgpack.encode(hello)).pack(), ConflictError, "process 77")


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"HTTP/1.1 400\r\n", FormatError, "magic"),
        (Frame(Kind.ANSWER, 9, b"\xc0").pack(), FormatError, "call 1"),
        (Frame(Kind.REQUEST, 1, b"\xc0").pack(), FormatError, "REQUEST"),
        (Frame(Kind.ANSWER, 1, b"\xc0").pack(), FormatError, "hello"),
        (b"", UnavailableError, "gone"),
        (Frame(Kind.ANSWER, 1, b"x" * 50).pack()[:30], UnavailableError, "gone"),
    ],
)
def test_a_strange_owner_gives_typed_errors(
    tmp_path: Path, answer: bytes, kind: type[ReplicatorError], text: str
) -> None:
    _against(tmp_path, answer, kind, text)


def _against(path: Path, answer: bytes, kind: type[ReplicatorError], text: str) -> None:
    """Connect to somebody who answers hello with these bytes, and hangs up."""
    listener = sockets.PoolSocket(path, "control")

    def serve() -> None:
        connected, _ = listener.socket.accept()
        with connected:
            connected.recv(65536)
            connected.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with pytest.raises(kind, match=text):
            ControlConnection(path, "own")
    finally:
        thread.join()
        listener.close()


def test_an_owner_that_does_not_answer_in_time_is_unavailable(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this call nobody knows whether it was done; the next ones go on over another connection."""
    near, go, status = RemotePool(pool.path, answer_s=20), threading.Event(), pool.status()
    monkeypatch.setattr(pool, "status", lambda: status if go.wait(20) else None)
    stuck = RemotePool(pool.path, answer_s=0.05)
    with pytest.raises(UnavailableError, match="no answer to status"):
        stuck.status()
    assert stuck.view().at_id == pool.view().at_id
    go.set()
    assert near.status().transaction_id == pool.view().at_id
    near.close()
    stuck.close()


def test_more_clients_than_the_limit_are_told_so(tmp_path: Path) -> None:
    """X2; room is given back."""
    make_pool(tmp_path / "pool")
    with (
        own_pool(tmp_path / "pool") as owned,
        ControlServer(owned, owned.path, pid=os.getpid(), connections_limit=3) as server,
    ):
        first = [RemotePool(owned.path) for _ in range(3)]
        with pytest.raises(UnavailableError, match="3 clients"):
            RemotePool(owned.path)
        first.pop().close()
        while server.connection_count == 3:
            assert first[0].stands
        RemotePool(owned.path).close()
        for each in first:
            each.close()
