"""O2 of exporter/outbox, where TLS can't say anything any more."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from replicator.exporter.outbox import Drainer, Outbox
from replicator.exporter.transport import TlsTransport
from tests.support.certificates import make_certificates

DAMAGED_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)


def test_a_reply_after_a_damaged_record_goes_nowhere_and_harms_nobody(tmp_path: Path) -> None:
    """The committer answers flushes: what a client did to its own connection must not reach it."""
    make_certificates(tmp_path)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(tmp_path / "server-cert.pem", tmp_path / "server-key.pem")
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outside.load_verify_locations(tmp_path / "ca-cert.pem")
    near, far = socket.socketpair()
    transport, drainer = TlsTransport(near, inside), Drainer()
    shaking = threading.Thread(target=transport.shake_hands)
    shaking.start()
    with near, outside.wrap_socket(far, server_hostname="localhost") as client:
        shaking.join(10)
        outbox = Outbox(transport, drainer)
        outbox.put(b"fine")
        assert client.recv(4) == b"fine"
        _send_raw(client, DAMAGED_RECORD)
        with pytest.raises(ssl.SSLError):
            transport.receive_into(memoryview(bytearray(4)))
        outbox.put(b"lost")
        assert outbox.closed and not outbox.has_backlog
        outbox.close()
    drainer.close()


def _send_raw(client: ssl.SSLSocket, data: bytes) -> None:
    """Bytes beside TLS."""
    with socket.socket(fileno=socket.dup(client.fileno())) as bare:
        bare.sendall(data)
