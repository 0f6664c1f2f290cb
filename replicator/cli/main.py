"""The command `replicator`: finds the command, runs it, and turns every error into a message, a mend and an exit code.

The top of the core: it knows the names of the commands, and imports a command's module only when that command is run
or asked for help, so that `replicator --help` is there at once. `agent` and `receiver` add theirs by the entry-point
group `replicator.commands`: each entry point gives a list of click commands.

    exit code   0 done · 1 failed · 2 wrong usage · 3 damage found · 4 conflict · 5 not found

Invariants
  C1  No error leaves a traceback: a ReplicatorError prints its message and what mends it; with --json, on stderr, one
      document {"error": {"kind", "message", "mend"}}. REPLICATOR_TRACEBACK=1 shows where, for those who mend us.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from replicator.errors import ReplicatorError, UsageError

_COMMANDS = {
    "check": ("replicator.cli.monitor", "For monitoring: one line, exit code as Nagios reads it."),
    "config": ("replicator.cli.config", "Check a configuration file, or show what it comes to."),
    "connect": ("replicator.cli.connect", "Print the lines that connect a client to a volume."),
    "demo": ("replicator.cli.demo", "The whole way on this machine, with real data."),
    "doctor": ("replicator.cli.doctor", "What this host can do, and why not."),
    "init": ("replicator.cli.config", "Write a commented configuration file."),
    "log": ("replicator.cli.log", "What a log holds: list, show, verify, archive, serve."),
    "points": ("replicator.cli.points", "Restore points: list, show, create, label."),
    "pool": ("replicator.cli.pool", "A pool: create, status, check, dump, repair, grow."),
    "restore": ("replicator.cli.restore", "Restore a volume as of a point, to a file, a device or stdout."),
    "serve": ("replicator.cli.serve", "Export volumes, snapshots or restore points over NBD."),
    "status": ("replicator.cli.status", "Every agent and receiver running here, worst first."),
    "volume": ("replicator.cli.volume", "Volumes: create, list, snapshot, clone, delete, import, export, diff."),
}
_HOSTS = {
    "agent": "The source host: cut, publish, and what would be lost now.",
    "receiver": "The replica host: follow, apply, and how far behind.",
}


YOUNG_OBJECTS = 100_000
"""New objects between two looks for cycles: importing makes some 50,000 that stay; at 700 they are looked at often."""


class Commands(click.Group):
    """The top-level group; a command's module is imported when the command is."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*_here(), *_HOSTS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _here():
            command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
            return command
        return _hosts_command(cmd_name) if cmd_name in _HOSTS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = {name: _COMMANDS[name][1] for name in _here()} | _HOSTS
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


def _here() -> list[str]:
    """The commands whose modules this installation has."""
    folder = os.path.dirname(__file__)  # noqa: PTH120 - pathlib costs a tenth of the start-up time allowed
    there = {name[:-3] for name in os.listdir(folder) if name.endswith(".py")}  # noqa: PTH208 - as above: start-up time
    return [name for name, (module, _) in _COMMANDS.items() if module.rpartition(".")[2] in there]


def _hosts_command(name: str) -> click.Command | None:
    from replicator.cli.hosts import host_commands

    for commands in host_commands(name):
        for command in commands():
            if command.name == name:
                found: click.Command = command
                return found
    return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="replicator", message="replicator %(version)s")
def cli() -> None:
    """Continuous off-site replication, point-in-time restore and incremental backup of block volumes.

    \b
    See it work:       replicator demo
    What runs here:    replicator status
    A new pool:        replicator pool create /srv/pool --size 100GiB
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # numpy would start threads for linear algebra, of which there is none
    gc.set_threshold(YOUNG_OBJECTS)
    args = list(sys.argv[1:] if arguments is None else arguments)
    code = run(args)
    gc.freeze()  # else the interpreter's end looks through all of them twice: 15 ms each
    sys.exit(code)


def run(args: list[str]) -> int:
    """Run one command line; returns the exit code, having told what went wrong."""
    try:
        if any("\0" in each for each in args):
            raise UsageError("an argument holds a NUL byte, which no name or path can", mend="leave it out")
        result = cli.main(args=args, prog_name="replicator", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ReplicatorError as error:
        _tell(args, error.kind, error.message, error.mend)
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "replicator"
        _tell(args, "usage", error.format_message(), f"{where} --help shows how it is used")
        return 2
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered has no reader: don't complain at exit
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _tell(args, "failed", f"{where}{error.strerror or error}", None)
        return 1
    except Exception as error:  # noqa: BLE001 - C1: the last resort, for a bug of ours
        return _tell_bug(args, error)


def _tell(args: list[str], kind: str, message: str, mend: str | None) -> None:
    if os.environ.get("REPLICATOR_TRACEBACK"):
        import traceback

        traceback.print_exc()
    if "--json" in args:
        import json

        click.echo(json.dumps({"error": {"kind": kind, "message": message, "mend": mend}}), err=True)
        return
    click.echo(f"replicator: {message}", err=True)
    if mend:
        click.echo(f"  {mend}", err=True)


def _tell_bug(args: list[str], error: Exception) -> int:
    mend = "set REPLICATOR_TRACEBACK=1, run it again, and report what it prints"
    _tell(args, "bug", f"a bug of ours: {type(error).__name__}: {error}", mend)
    return 1


if __name__ == "__main__":
    main()
