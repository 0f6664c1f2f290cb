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
    "--append-only", is_flag=True, help="Reading and new events, no trimming or replacing of them: for an agent's key."
)
@click.option("--follow-only", is_flag=True, help="Reading, and the registrations of receivers: for a receiver's key.")
def serve_log(path: str, stdio: bool, append_only: bool, follow_only: bool) -> None:
    """Serve a directory log to whoever names it as ssh://.

    Called by ssh at the far end, not by hand. In ~/.ssh/authorized_keys, for an agent's key and a receiver's:

    \b
    restrict,command="replicator log serve /srv/replicator/log --stdio --append-only" ssh-ed25519 AAAA… agent@host
    restrict,command="replicator log serve /srv/replicator/log --stdio --follow-only" ssh-ed25519 AAAA… receiver@host
    """
    from replicator.log.rights import Rights
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
    if append_only and follow_only:
        raise UsageError("a key may only append, or only follow", mend="a host that does both needs two keys")
    rights = Rights.APPEND if append_only else Rights.FOLLOW if follow_only else Rights.ALL
    try:
        StoreServer(Path(path), DescriptorPipes(0, 1), rights).run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the client is gone: so are its unfinished objects
