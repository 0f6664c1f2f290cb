"""What a hostile or broken broker may answer to the probe: an error of ours, soon, and with bounded memory."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.errors import UnavailableError
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_errors import KafkaLoginError, KafkaTlsError
from replicator.log.kafka_probe import probe


def frame(body: bytes) -> bytes:
    """An answer as it should be framed."""
    return struct.pack(">i", 4 + len(body)) + struct.pack(">i", 1) + body


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """A server that gives one answer after the other to whatever it is asked, and closes."""
    threads: list[threading.Thread] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve(answers: tuple[bytes, ...]) -> None:
            connection, _ = listening.accept()
            with connection:
                for answer in answers:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        def start(*answers: bytes) -> str:
            threads.append(threading.Thread(target=serve, args=(answers,)))
            threads[-1].start()
            return f"127.0.0.1:{listening.getsockname()[1]}"

        yield start
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("answers", "kind", "says"),
    [
        ((), KafkaTlsError, "closes the connection"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), UnavailableError, "no Kafka broker"),
        ((struct.pack(">i", 1 << 30),), UnavailableError, "no Kafka broker"),
        ((struct.pack(">i", -1),), UnavailableError, "no Kafka broker"),
        ((b"\x15\x03\x03\x00\x02\x02\x46",), KafkaTlsError, "answers by TLS"),
        ((b"\0\0",), UnavailableError, "closed|closes"),
        ((frame(b"\0\0"), frame(b"")), KafkaLoginError, "doesn't offer"),
        ((frame(b"\0\0"), frame(struct.pack(">hi", 33, 1) + b"\0\5PLAIN")), KafkaLoginError, "doesn't offer"),
        ((frame(b"\0\0"), frame(struct.pack(">hi", 34, 0))), KafkaLoginError, "wants no login"),
        ((frame(b"\0\0"), frame(struct.pack(">hi", 0, 0)), frame(b"\0")), UnavailableError, "no Kafka broker"),
        ((frame(b"\0\0"), frame(struct.pack(">hi", 0, 0)), frame(struct.pack(">hhi", 0, -1, 3) + b"xyz")),
         UnavailableError, "can't be read"),
        ((frame(b"\0\0"), frame(struct.pack(">hi", 0, 0)),
          frame(struct.pack(">hhi", 0, -1, 24) + b"r=no,s=AAAA,i=99999999999")), KafkaLoginError, "isn't for us"),
        ((frame(b"\0\0"), frame(struct.pack(">hi", 0, 0)), frame(struct.pack(">hhi", 58, 2, 0) + b"no")),
         UnavailableError, "refuses user agent|no Kafka broker"),
    ],
)  # fmt: skip
def test_answers(
    answering: Callable[..., str], tmp_path: Path, answers: tuple[bytes, ...], kind: type[Exception], says: str
) -> None:
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret")
    address = answering(*answers)
    url = f"kafka://{address}/x?timeout=2s&user=agent&password-file={password}"
    with pytest.raises(kind, match=says) as caught:
        probe(parse_kafka_url(url))
    assert "secret" not in str(caught.value)
