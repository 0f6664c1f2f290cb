"""What `replicator connect` prints is what other people's clients take: the URI opens, in qemu and in libnbd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import judges
from tests.support.command_line import Command
from tests.support.pool_owner import make_pool

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("nbd_judges")


@contextmanager
def serve(*arguments: object) -> Iterator[None]:
    """`replicator serve`, until the block ends."""
    ready, told = os.pipe()
    argv = [sys.executable, "-c", "from replicator.cli.main import main; main()", "serve", *map(str, arguments)]
    argv += ["--ready-fd", str(told)]
    with subprocess.Popen(argv, pass_fds=(told,), stdout=subprocess.DEVNULL) as child:
        os.close(told)
        try:
            assert os.read(ready, 64), "it ended before it was ready"
            yield
        finally:
            os.close(ready)
            child.terminate()
            assert child.wait() == 0


@pytest.mark.parametrize("name", ["vm1", "a b,c"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_the_uri_opens_in_qemu_and_libnbd(command: Command, tmp_path: Path, name: str, kind: str) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, 16 * MIB)
    command("volume", "create", pool, name, "--size", "3MiB")
    address = f"unix:{tmp_path}/my socket" if kind == "unix" else "tcp:127.0.0.1:0"
    with serve(pool, "--listen", address):
        uri = command("connect", pool, name, "--for", "qemu", "--json").document["uri"]
        shown = json.loads(judges.nbd_tool("nbdinfo").run("--json", uri).stdout)
        assert shown["exports"][0]["export-size"] == 3 * MIB
        assert judges.nbd_tool("qemu-img").run("info", "--output=json", uri).stdout.count(str(3 * MIB)) >= 1
        assert command("pool", "check", pool).code == 0
        (tmp_path / "image").write_bytes(b"x" * 512)
        assert "served for writing" in command("volume", "import", pool, name, tmp_path / "image", "--yes", code=4).err
