"""The end of a process that listens beside a pool: waited for beyond its socket's, with a limit that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.errors import UnavailableError
from replicator.pool.daemons import DaemonSocket
from replicator.pool.ending import Listening, stop_daemon

ROOT = Path(__file__).resolve().parents[3]
LINGERS = """
import sys, threading
from pathlib import Path
from replicator.pool.daemons import DaemonSocket
asked = threading.Event()
with DaemonSocket(Path(sys.argv[1]), "agent", {"stop": lambda _: asked.set() or {}}):
    print("ready", flush=True)
    asked.wait()
print("closed", flush=True)
sys.stdin.read()
"""


def test_a_process_that_outlives_its_socket_is_waited_for(tmp_path: Path) -> None:
    """W1."""
    argv = [sys.executable, "-c", LINGERS, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        with Listening(tmp_path, "agent") as held:
            with pytest.raises(UnavailableError, match=rf"pid {child.pid}, of \S+/agent, hasn't ended") as caught:
                stop_daemon(tmp_path, "agent", 0.1)
            assert caught.value.mend and str(child.pid) in caught.value.mend
            assert child.stdout.readline() == b"closed\n"
            assert stop_daemon(tmp_path, "agent", 0.1) is None, "nobody listens any more"
            with pytest.raises(UnavailableError):
                held.wait_gone(0.1)
            child.stdin.close()
            held.wait_gone(60)
            assert child.poll() == 0


def test_where_python_knows_no_descriptors_of_processes_the_socket_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    argv = [sys.executable, "-c", LINGERS, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        assert stop_daemon(tmp_path, "agent", 60) == {}
        child.stdin.close()


def test_where_the_process_is_this_one_its_socket_counts(tmp_path: Path) -> None:
    daemon = DaemonSocket(tmp_path, "agent", {})
    with Listening(tmp_path, "agent") as held:
        with pytest.raises(UnavailableError, match="hasn't ended"):
            held.wait_gone(0.01)
        daemon.close()
        held.wait_gone(60)
