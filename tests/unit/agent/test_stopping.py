"""`agent stop` and `receiver stop`: who stops may be gone before its answer is sent; none at all is another matter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.job import SOCKET_NAME, stop_agent
from receiver.daemon import SOCKET_NAME as RECEIVERS
from receiver.running import stop_receiver
from replicator.errors import NotFoundError
from replicator.exporter.supervise import connect, end_started_by
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.pool.sockets import PoolSocket
from tests.support.agent_world import SourceHost
from tests.support.pool_owner import make_pool, owned_by_child


@pytest.mark.parametrize(("name", "stop"), [(SOCKET_NAME, stop_agent), (RECEIVERS, stop_receiver)])
def test_one_that_hangs_up_without_an_answer_was_stopped(
    tmp_path: Path, name: str, stop: Callable[[Path, float], object]
) -> None:
    host = SourceHost(tmp_path)
    listener = PoolSocket(host.path, name)

    def hang_up() -> None:
        looked, _ = listener.socket.accept()
        asked, _ = listener.socket.accept()
        asked.recv(4096)
        listener.close()
        for each in (looked, asked):
            each.close()

    agent = threading.Thread(target=hang_up)
    agent.start()
    stop(host.path, 10)
    agent.join()
    with pytest.raises(NotFoundError, match=r"no (agent|receiver) runs"):
        stop(host.path, 10)
    host.close()


def test_an_exporter_that_is_gone_has_ended(tmp_path: Path) -> None:
    """A clean stop of a daemon whose exporter died is clean."""
    make_pool(tmp_path / "pool")
    with owned_by_child(tmp_path / "pool") as child, RemotePool(tmp_path / "pool") as remote:
        child.kill()
        child.wait()
        end_started_by(remote, "own")
        end_started_by(remote, "agent")


def test_an_exporter_that_was_ended_has_let_go_of_its_pool(tmp_path: Path) -> None:
    """Whoever comes next needn't wait; what another started stays."""
    make_pool(tmp_path / "pool")
    with connect(tmp_path / "pool", started_by="agent") as pool:
        end_started_by(pool, "receiver")
        assert pool.stands
        end_started_by(pool, "agent")
    own_pool(tmp_path / "pool").close()
