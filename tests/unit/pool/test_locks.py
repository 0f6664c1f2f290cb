"""P9, L1 and L2 of pool/locks, S1 and S2 of pool/sockets."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from pathlib import Path

import pytest

from replicator.errors import ConflictError, NotFoundError, SocketError, UnavailableError, UsageError
from replicator.pool import locks, sockets
from replicator.pool.locks import OwnedElsewhereError, PoolLock, owner_pid, refuse_network_file_system
from replicator.pool.opening import open_pool, own_pool
from replicator.pool.remote import RemotePool
from tests.support.mirrored_pool import make_mirrored
from tests.support.pool_owner import make_pool, owned_by_child


def test_a_second_opener_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """P9, at once."""
    make_pool(tmp_path / "pool")
    with owned_by_child(tmp_path / "pool", control=False) as child:
        assert owner_pid(tmp_path / "pool") == child.pid
        with pytest.raises(OwnedElsewhereError, match=f"process {child.pid}"):
            own_pool(tmp_path / "pool")
        with pytest.raises(ConflictError, match=f"process {child.pid}"):
            open_pool(tmp_path / "pool", owner_s=0)
    own_pool(tmp_path / "pool").close()


@pytest.mark.parametrize("part", ["data", "metadata", "metadata.mirror"])
def test_a_file_that_two_directories_lead_to_has_one_owner(tmp_path: Path, part: str) -> None:
    """P9: a copied directory has a `lock` of its own, and links to the same file."""
    pool, other, file = tmp_path / "pool", tmp_path / "other", tmp_path / "file"
    if part == "metadata.mirror":
        make_mirrored(pool, file)
    else:
        make_pool(pool)
        (pool / part).rename(file)
        (pool / part).symlink_to(file)
    shutil.copytree(pool, other, symlinks=True)
    with own_pool(pool), pytest.raises(ConflictError, match=f"{part} is held by another pool directory"):
        own_pool(other)
    own_pool(pool).close()


def test_a_killed_owners_lock_is_free(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    with owned_by_child(tmp_path / "pool") as child:
        with RemotePool(tmp_path / "pool") as pool:
            assert pool.status().owner_pid == pool.owner.pid == child.pid
            child.kill()
            child.wait()
            assert not pool.stands
            with pytest.raises(UnavailableError):
                pool.status()
        assert (tmp_path / "pool" / "control").is_socket()
        with own_pool(tmp_path / "pool") as pool_again:
            assert pool_again.status().owner_pid == os.getpid() == owner_pid(tmp_path / "pool")
    assert owner_pid(tmp_path / "pool") is None


def test_an_opener_waits_for_readers_and_says_so(tmp_path: Path) -> None:
    """L1."""
    reader, told = PoolLock.read(tmp_path), []

    def waiting(what: str) -> None:
        told.append(what)
        assert reader is not None
        reader.release()

    with PoolLock.own(tmp_path, waiting=waiting):
        assert PoolLock.read(tmp_path) is None
    assert len(told) == 1 and "read" in told[0]
    with PoolLock.own(tmp_path, waiting=told.append):
        assert len(told) == 1


def test_readers_that_stay_are_a_conflict(tmp_path: Path) -> None:
    reader = PoolLock.read(tmp_path)
    assert reader is not None
    with reader:
        with pytest.raises(ConflictError, match="being read") as refusal:
            PoolLock.own(tmp_path, wait_s=0)
        assert not isinstance(refusal.value, OwnedElsewhereError)


def test_a_new_owner_waits_for_a_dead_owners_clients(tmp_path: Path) -> None:
    """L2."""
    client = PoolLock.write(tmp_path)
    with pytest.raises(ConflictError, match="still writes"):
        PoolLock.only_writer(tmp_path, wait_s=0)
    with PoolLock.only_writer(tmp_path, waiting=lambda _: client.release()):
        PoolLock.write(tmp_path).release()
    client.release()


def test_a_reader_of_what_cannot_be_written_needs_no_lock(tmp_path: Path) -> None:
    """Read-only media: there is no lock file, and nobody can open for writing either."""
    with pytest.raises(NotFoundError):
        PoolLock.read(tmp_path / "none")
    place = tmp_path
    if os.geteuid() == 0:
        place = Path("/sys/kernel")  # root may write everywhere else
    tmp_path.chmod(0o500)
    reader = PoolLock.read(place)
    assert reader is not None
    reader.release()


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network_file_system(tmp_path)
    with pytest.raises(NotFoundError):
        refuse_network_file_system(tmp_path / "none")
    proc = {0x9FA0: "a network of ours"}  # PROC_SUPER_MAGIC: the one file system of its own kind that is everywhere
    monkeypatch.setattr(locks, "_NETWORK_FILE_SYSTEMS", proc)
    with pytest.raises(UsageError, match="a network of ours"):
        refuse_network_file_system(Path("/proc"))


def test_sockets_have_any_length_of_path_and_the_mode_asked_for(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    listener = sockets.PoolSocket(deep, "control")
    assert stat.S_IMODE((deep / "control").stat().st_mode) == 0o600
    with sockets.connect(deep, "control", 5) as near:
        far, _ = listener.socket.accept()
        with far:
            peer = sockets.peer_of(far)
            assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid()) and peer.may_enter(None)
            near.sendall(b"x")
            assert far.recv(1) == b"x"
    listener.close()
    assert not list(deep.iterdir())
    shared = sockets.PoolSocket(deep, "control", group=os.getegid())
    assert stat.S_IMODE((deep / "control").stat().st_mode) == 0o660
    shared.close()
    with pytest.raises(UnavailableError):
        sockets.connect(deep, "control", 5)
    with pytest.raises(UsageError, match="group"):
        sockets.group_id("no such group")


def test_a_socket_that_cant_be_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match=r"^can't listen at \S+/none/agent: No such file or directory$"):
        sockets.PoolSocket(tmp_path / "none", "agent")


def test_a_living_socket_is_not_replaced_and_a_dead_one_is(tmp_path: Path) -> None:
    """S1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "control"))
    living = sockets.PoolSocket(tmp_path, "control")
    with pytest.raises(ConflictError, match="listens"):
        sockets.PoolSocket(tmp_path, "control")
    assert (tmp_path / "control").is_socket()
    living.close()
    assert not (tmp_path / "control").exists()


def test_of_many_that_start_at_once_one_listens(tmp_path: Path) -> None:
    """S2."""
    ready, won, lost = threading.Barrier(8), [], []

    def start() -> None:
        ready.wait()
        try:
            won.append(sockets.PoolSocket(tmp_path, "agent"))
        except ConflictError as error:
            lost.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    sockets.connect(tmp_path, "agent", 5).close()
    won[0].close()


def test_a_socket_that_another_has_replaced_is_left_alone(tmp_path: Path) -> None:
    first = sockets.PoolSocket(tmp_path, "agent")
    (tmp_path / "agent").unlink()
    second = sockets.PoolSocket(tmp_path, "agent")
    first.close()
    sockets.connect(tmp_path, "agent", 5).close()
    second.close()


@pytest.mark.parametrize(
    ("uid", "gids", "group", "enters"),
    [
        (0, {5}, None, True),
        (-2, {5}, None, False),
        (-2, {5}, 5, True),
        (-2, {5}, 6, False),
    ],
)
def test_who_may_enter(uid: int, gids: set[int], group: int | None, enters: bool) -> None:
    assert sockets.Peer(1, uid, frozenset(gids)).may_enter(group) is enters
