"""`agent stop`: an agent may be gone before its answer is sent, and none at all is another matter."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agent.job import SOCKET_NAME, stop_agent
from replicator.errors import NotFoundError
from replicator.pool.sockets import PoolSocket
from tests.support.agent_world import SourceHost


def test_an_agent_that_hangs_up_without_an_answer_was_stopped(tmp_path: Path) -> None:
    host = SourceHost(tmp_path)
    listener = PoolSocket(host.path, SOCKET_NAME)

    def hang_up() -> None:
        looked, _ = listener.socket.accept()
        asked, _ = listener.socket.accept()
        asked.recv(4096)
        listener.close()
        looked.close()
        asked.close()

    agent = threading.Thread(target=hang_up)
    agent.start()
    stop_agent(host.path, 10)
    agent.join()
    with pytest.raises(NotFoundError, match="no agent runs"):
        stop_agent(host.path, 10)
    host.close()
