"""versitygw, an S3 server on a directory with conditional PUT, on a loopback port, for as long as a test needs it.

Invariant S1: it is ended, by its id, when its block ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.judges import find_tool

BUCKET = "bucket"
ROOT_KEY, ROOT_SECRET = "root-key", "root-secret"
READY_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server; `folder` has its bucket, and files with keys."""

    folder: Path
    port: int

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str, *, user: str = "root", bucket: str = BUCKET) -> str:
        """A log's URL on it, with the keys of `user`."""
        asked = {"endpoint": self.endpoint, "region": "us-east-1", "credentials": str(self.folder / f"{user}.keys")}
        return f"s3://{bucket}/{prefix}?{urlencode(asked)}"

    def write_keys(self, user: str, key: str, secret: str) -> None:
        """A file with keys, as ?credentials= takes it."""
        path = self.folder / f"{user}.keys"
        path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        path.chmod(0o600)

    def add_user(self, user: str) -> None:
        """A user with keys and no rights of its own."""
        tool = find_tool("versitygw", "versitygw")
        secret = f"{user}-secret"
        admin = ["-a", ROOT_KEY, "-s", ROOT_SECRET, "-er", self.endpoint]
        tool.run("admin", *admin, "create-user", "-a", user, "-s", secret, "-r", "user")
        self.write_keys(user, user, secret)

    def set_policy(self, policy: Mapping[str, Any]) -> None:
        """The bucket's policy, where the server keeps it."""
        os.setxattr(self.folder / "data" / BUCKET, "user.policy", json.dumps(policy).encode())


@contextlib.contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """A server with one bucket, whose files are in `folder`."""
    for name in (f"data/{BUCKET}", "iam", "sidecar"):
        (folder / name).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    server = S3Server(folder, port)
    server.write_keys("root", ROOT_KEY, ROOT_SECRET)
    tool = find_tool("versitygw", "versitygw")
    argv = tool.argv("--port", f"127.0.0.1:{port}", "--iam-dir", folder / "iam", "--quiet", "posix", folder / "data")
    env = tool.env(ROOT_ACCESS_KEY=ROOT_KEY, ROOT_SECRET_KEY=ROOT_SECRET)
    with (folder / "s3.log").open("wb") as log:
        child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _await(server, child)
            yield server
        finally:
            child.terminate()
            child.wait(READY_LIMIT_S)


def _await(server: S3Server, child: subprocess.Popen[bytes]) -> None:
    """Until it takes connections."""
    deadline = time.monotonic() + READY_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
        except OSError:
            if child.poll() is not None or time.monotonic() > deadline:
                told = (server.folder / "s3.log").read_text()[-2000:]
                raise AssertionError(f"versitygw didn't start:\n{told}") from None
            time.sleep(0.02)
        else:
            return
