"""`replicator log serve`: a directory log for one client at the other end of standard input and output.

What an SSH log runs at its far end, by itself or as the forced command of a key. Over log/stdio_server.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from replicator.errors import UsageError


@click.command("serve")
@click.argument("path", metavar="DIRECTORY")
@click.option(
    "--stdio", is_flag=True, help="Over standard input and output: has to be said, and is the only way there is."
)
@click.option(
    "--append-only", is_flag=True, help="New events and reading, no trimming, no replacing: for an agent's key."
)
def serve_log(path: str, stdio: bool, append_only: bool) -> None:
    """Serve a directory log to whoever names it as ssh://.

    Called by ssh at the far end, not by hand. In ~/.ssh/authorized_keys, for an agent's key:

    \b
    restrict,command="replicator log serve /srv/replicator/log --stdio --append-only" ssh-ed25519 AAAA… agent@host
    """
    from replicator.log.stdio_pipes import DescriptorPipes
    from replicator.log.stdio_server import StoreServer

    if not stdio:
        raise UsageError(
            "log serve speaks over standard input and output alone", mend=f"replicator log serve {path} --stdio"
        )
    if os.isatty(0):
        raise UsageError(
            "log serve is called by ssh, not by hand", mend=f"name it as a log: ssh://HOST{Path(path).absolute()}"
        )
    try:
        StoreServer(Path(path), DescriptorPipes(0, 1), append_only=append_only).run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the client is gone: so are its unfinished objects
