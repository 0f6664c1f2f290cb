"""`replicator serve` as a process of its own: started, told to be ready, and ended by SIGTERM.

Invariant P1: it ends with its block, by its id; it ended well, and said nothing that it hadn't expected.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
END_S = 60.0
_ANSWER_BYTES = 4096


@contextlib.contextmanager
def serving(pool: Path, *arguments: str | Path) -> Iterator[int]:
    """Serve `pool` as the arguments say; yields the process's id. Its log is POOL.log."""
    receiving, sending = os.pipe()
    argv = [sys.executable, "-m", "replicator.cli.main", "serve", pool, *arguments, "--ready-fd", str(sending)]
    log = pool.with_name(f"{pool.name}.log")
    with log.open("ab") as out:
        child = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[sending])
    os.close(sending)
    try:
        ready = select.select([receiving], [], [], READY_S)[0]
        said = os.read(receiving, _ANSWER_BYTES) if ready else b"nothing"
        assert said == b"READY\n", f"{said!r}: {log.read_text()}"
        yield child.pid
        child.terminate()
        assert child.wait(END_S) == 0, log.read_text()
    finally:
        os.close(receiving)
        if child.poll() is None:
            child.kill()
            child.wait()
    assert "Traceback" not in log.read_text() and "a bug of ours" not in log.read_text(), log.read_text()
