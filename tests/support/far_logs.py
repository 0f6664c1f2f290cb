"""The servers behind logs that lie elsewhere, together: an S3 server and an sshd, for tests that run on every log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.support.judges import require, why_missing
from tests.support.s3_server import S3Server, running_s3
from tests.support.sshd import REPLICATOR, Sshd, running_sshd, shared_connection


@dataclass(frozen=True, slots=True)
class FarServers:
    """What runs; None for what this machine lacks."""

    s3: S3Server | None
    sshd: Sshd | None

    def s3_url(self, prefix: str) -> str:
        """A log in the bucket; the test is skipped, or fails, without the server."""
        require("versitygw")
        assert self.s3 is not None, "it was started with the session"
        return self.s3.url(prefix)

    def ssh_url(self, path: Path) -> str:
        """A log behind sshd."""
        require("ssh")
        assert self.sshd is not None, "it was started with the session"
        return f"{self.sshd.url(path)}?command={quote(REPLICATOR)}&ssh={quote(self.sshd.shared_command)}"


@contextlib.contextmanager
def running_far_servers(folder: Path) -> Iterator[FarServers]:
    """Both servers, as far as this machine has them."""
    with contextlib.ExitStack() as stack:
        s3 = None if why_missing("versitygw") else stack.enter_context(running_s3(folder / "s3"))
        sshd = None if why_missing("ssh") else stack.enter_context(running_sshd(folder / "sshd"))
        if sshd is not None:
            stack.enter_context(shared_connection(sshd))
        yield FarServers(s3, sshd)
