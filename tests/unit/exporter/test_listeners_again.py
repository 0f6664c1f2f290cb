"""A listener that was added by hand is there again when the exporter died and its supervisor started another one."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from replicator.errors import UnavailableError
from replicator.exporter.supervise import Listeners, connect
from replicator.pool import volumes
from replicator.pool.control_values import ListenAsked
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.units import MIB
from tests.support.pool_owner import make_pool


def served_at(pool: RemotePool) -> set[tuple[str, str, bool]]:
    return {(each.name, each.address, each.read_only) for each in pool.exports()}


def wait_for_end(pid: int) -> None:
    """Until the process is gone; the supervisor's thread reaps it."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)


def test_all_listeners_come_again(tmp_path: Path) -> None:
    path, told = tmp_path / "pool", list[str]()
    make_pool(path)
    with own_pool(path) as owned:
        for name in ("disk", "other", "gone"):
            volumes.create_volume(owned, name, MIB)
    first = ListenAsked(f"unix:{tmp_path}/first.sock", ["disk"])
    added = ListenAsked(f"unix:{tmp_path}/added.sock", ["other"], read_only=True)
    lost = ListenAsked(f"unix:{tmp_path}/lost.sock", ["gone"])
    listeners = Listeners(lambda: connect(path, started_by="agent", listener=first), told.append)
    pool = listeners.connect()
    assert isinstance(pool, RemotePool)
    pool.listen(added)
    listeners.note(pool)
    before = served_at(pool)
    assert len(before) == 2
    pool.listen(lost)
    listeners.note(pool)
    os.kill(pool.owner.pid, signal.SIGKILL)
    while pool.stands:
        pass
    listeners.note(pool)  # it is away: what was known stays
    pool.close()
    with own_pool(path) as owned:
        volumes.delete_volume(owned, "gone")
    again = listeners.connect()
    assert isinstance(again, RemotePool) and again.owner.pid != pool.owner.pid
    assert served_at(again) == before
    assert len(told) == 1 and "lost.sock isn't served any more" in told[0]
    with suppress(UnavailableError):  # it may be gone before its answer is sent
        again.stop()
    again.close()
    wait_for_end(again.owner.pid)
    assert not (tmp_path / "added.sock").exists(), "a clean stop takes its socket files away"
