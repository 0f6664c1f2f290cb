"""Addresses: what parses, which socket files are replaced, and what mode they get."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from replicator.errors import ConflictError, SocketError, UsageError
from replicator.exporter.address import TcpAddress, UnixAddress, bind, connect_unix, parse_address, unlink_own


@pytest.mark.parametrize(
    ("text", "address", "again"),
    [
        ("unix:/run/x", UnixAddress(Path("/run/x")), "unix:/run/x"),
        ("unix:a:b", UnixAddress(Path("a:b")), "unix:a:b"),
        ("tcp:host:1", TcpAddress("host", 1), "tcp:host:1"),
        ("tcp:127.0.0.1", TcpAddress("127.0.0.1", 10809), "tcp:127.0.0.1:10809"),
        ("tcp:[::1]:7", TcpAddress("::1", 7), "tcp:[::1]:7"),
        ("tcp:[::1]", TcpAddress("::1", 10809), "tcp:[::1]:10809"),
    ],
)
def test_addresses_parse(text: str, address: UnixAddress | TcpAddress, again: str) -> None:
    assert parse_address(text) == address
    assert str(address) == again


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp:", "tcp::1", "tcp:h:x", "tcp:h:65536", "tcp:::1:7", "udp:h:1", "/run/x", "unix:a\0b"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_a_living_listener_is_not_replaced_and_a_dead_one_is(tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "s")
    first, _ = bind(address)
    with pytest.raises(ConflictError):
        bind(address)
    first.close()
    assert address.path.exists()
    second, _ = bind(address)
    connect_unix(address.path).close()
    second.close()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ConflictError):
        bind(UnixAddress(tmp_path / "s"))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (tmp_path / "s").read_text() == "precious"


def test_only_owner_or_group_may_connect(tmp_path: Path) -> None:
    listener, _ = bind(UnixAddress(tmp_path / "s"))
    with listener:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) in (0o600, 0o660)


def test_long_paths_are_reached_through_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    listener, _ = bind(UnixAddress(folder / "s"))
    with listener, connect_unix(folder / "s") as client:
        accepted = listener.accept()[0]
        accepted.sendall(b"hello")
        assert client.recv(5) == b"hello"
        accepted.close()
    with pytest.raises(UsageError):
        bind(UnixAddress(folder / ("n" * 100)))


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match=r"can't listen on unix:\S+/none/s: No such file or directory$") as caught:
        bind(UnixAddress(tmp_path / "none" / "s"))
    assert caught.value.mend


def test_tcp_ports_are_the_kernels_choice_and_taken_once() -> None:
    listener, address = bind(TcpAddress("127.0.0.1", 0))
    with listener:
        assert isinstance(address, TcpAddress)
        assert address.port
        with pytest.raises(ConflictError):
            bind(address)
        socket.create_connection((address.host, address.port)).close()


def test_only_the_own_socket_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener, _ = bind(UnixAddress(path))
    inode = path.lstat().st_ino
    unlink_own(path, inode + 1)
    assert path.exists()
    unlink_own(path, inode)
    assert not path.exists()
    listener.close()
