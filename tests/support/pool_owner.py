"""Owners of pools for tests: here with a control server, or as a process of its own that can be killed.

Run as a program, `python -m tests.support.pool_owner …`:

    own POOL [control]             opens the pool, prints "ready", goes on until its input ends; with a control socket
    die POOL LINE [DATA METADATA]  creates the pool, and ends at that line of creation's table
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from replicator.exporter.control import ControlServer, Hooks, Identity
from replicator.pool.creation import NewPool, PoolPlan, create_pool
from replicator.pool.opening import OwnedPool, own_pool
from replicator.units import MIB

DIED = 7
ROOT = Path(__file__).resolve().parents[2]


def make_pool(path: Path, size_bytes: int = 64 * MIB) -> NewPool:
    """A small new pool."""
    return create_pool(path, PoolPlan(size_bytes=size_bytes))


@contextmanager
def served(path: Path, hooks: Hooks | None = None, identity: Identity | None = None) -> Iterator[OwnedPool]:
    """The pool, owned and served in this process."""
    with own_pool(path) as pool, ControlServer(pool, path, hooks, identity, pid=os.getpid()):
        yield pool


@contextmanager
def owned_by_child(path: Path, *, control: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """The pool, owned by a child process; it may be killed inside the block."""
    argv = [sys.executable, "-m", "tests.support.pool_owner", "own", str(path), *(["control"] if control else [])]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        try:
            assert child.stdout.readline() == b"ready\n"
            yield child
        finally:
            child.stdin.close()
            child.wait()


def _own(path: Path, *, control: bool) -> None:
    with ExitStack() as stack:
        pool = stack.enter_context(own_pool(path))
        if control:
            stack.enter_context(ControlServer(pool, path, pid=os.getpid()))
        print("ready", flush=True)
        sys.stdin.buffer.read()


def _die(path: Path, line: str, devices: list[str]) -> None:
    plan = PoolPlan(data=Path(devices[0]), metadata=Path(devices[1])) if devices else PoolPlan(size_bytes=32 * MIB)
    create_pool(path, plan, reached=lambda at: os._exit(DIED) if at == line else None)


if __name__ == "__main__":
    verb, pool_path, *rest = sys.argv[1:]
    if verb == "own":
        _own(Path(pool_path), control="control" in rest)
    else:
        _die(Path(pool_path), rest[0], rest[1:])
