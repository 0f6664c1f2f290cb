"""OpenSSH's sshd on a loopback port, with keys made for the test, and the ssh command that reaches it.

Only what is needed is configured: one host key, one client key, one user: the one that runs the tests. As root sshd
wants a user `sshd` and the folder /run/sshd: the user is pretended by nss_wrapper where the machine has none, the
folder is made, and left there, empty.

Invariants
  S1  A server is ended, by its id, when its block ends; its sessions end with their clients.
  S2  Nothing of the user's own ~/.ssh is read or written.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.judges import JUDGES, ROOT, find_tool, library_path

PRIVILEGE_FOLDER = Path("/run/sshd")
READY_LIMIT_S = 20.0
REPLICATOR = f"{shlex.quote(sys.executable)} -m replicator.cli.main"


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running sshd."""

    folder: Path
    port: int
    user: str

    def url(self, path: Path | str, **parameters: str) -> str:
        """A log's URL on it."""
        asked = "&".join(f"{key}={value}" for key, value in parameters.items())
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}" + (f"?{asked}" if asked else "")

    @property
    def command(self) -> str:
        """What REPLICATOR_SSH has to be: ssh with this server's keys, whatever the user's own settings say."""
        return shlex.join(
            [
                str(find_tool("ssh", "ssh").path),
                *("-F", "none", "-i", str(self.folder / "client"), "-o", "IdentitiesOnly=yes"),
                *("-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
                *("-o", "GlobalKnownHostsFile=none"),
            ]
        )

    @property
    def shared_command(self) -> str:
        """The same, over the connection that `shared_connection` holds: no key exchange for each."""
        return f"{self.command} -o ControlPath={shlex.quote(str(self.folder / 'mux'))} -o ControlMaster=no"

    def authorize(self, forced: str = "") -> None:
        """Let the client's key in; with a command forced, to run that alone."""
        options = 'restrict,command="' + forced.replace('"', '\\"') + '" ' if forced else "restrict "
        keys = self.folder / "authorized_keys"
        keys.write_text(options + (self.folder / "client.pub").read_text())
        keys.chmod(0o600)


@contextlib.contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """A server whose files are in `folder`, which nobody else may write to."""
    folder.mkdir(mode=0o700, exist_ok=True)
    port = _free_port()
    _make_keys(folder, port)
    server = Sshd(folder, port, getpass.getuser())
    server.authorize()
    if os.geteuid() == 0:
        PRIVILEGE_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        tool = find_tool("ssh", "sshd")
        argv = [str(tool.path), "-D", "-e", "-f", str(_configuration(folder, port))]
        child = subprocess.Popen(argv, env=_environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _await_port(port, child, folder / "sshd.log")
            yield server
        finally:
            child.terminate()
            child.wait(READY_LIMIT_S)


@contextlib.contextmanager
def shared_connection(server: Sshd) -> Iterator[None]:
    """One connection that many sessions use, for as long as the block lasts."""
    mux = server.folder / "mux"
    argv = [
        *shlex.split(server.command),
        "-M",
        "-S",
        str(mux),
        "-N",
        "-p",
        str(server.port),
        f"{server.user}@127.0.0.1",
    ]
    with (server.folder / "mux.log").open("wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + READY_LIMIT_S
            while not mux.exists():
                assert child.poll() is None and time.monotonic() < deadline, (server.folder / "mux.log").read_text()
                time.sleep(0.02)
            yield
        finally:
            child.terminate()
            child.wait(READY_LIMIT_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _make_keys(folder: Path, port: int) -> None:
    tool = find_tool("ssh", "ssh-keygen")
    for name in ("host", "client"):
        tool.run("-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name)
    host = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")


def _configuration(folder: Path, port: int) -> Path:
    """The server's settings: keys only, no PAM, the product's modules on the path of what it starts."""
    path = folder / "sshd_config"
    path.write_text(
        f"""ListenAddress 127.0.0.1:{port}
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "authorized_keys"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv PYTHONPATH={ROOT}
"""
    )
    return path


def _environment(folder: Path) -> dict[str, str]:
    """With a user `sshd` where the machine has none."""
    env = {**os.environ, "LC_ALL": "C"}
    root = JUDGES / "ssh"
    if os.geteuid() or _has_user("sshd"):
        return env
    wrapper = next(root.glob("usr/lib/*/libnss_wrapper.so"), None)
    assert wrapper is not None, "libnss-wrapper is part of the judge ssh"
    lines = ["sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin"]
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + "\n".join(lines) + "\n")
    shutil.copy("/etc/group", folder / "group")
    return env | {
        "LD_PRELOAD": str(wrapper),
        "LD_LIBRARY_PATH": library_path(root),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _await_port(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    """Until it takes connections."""
    deadline = time.monotonic() + READY_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"sshd didn't start:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.02)
        else:
            return
