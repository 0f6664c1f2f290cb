"""`replicator --help` is there at once: counted by what it imports, not by a clock."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

HEAVY = {
    "numpy",
    "msgspec",
    "rich",
    "sqlite3",
    "ssl",
    "cryptography",
    "zstandard",
    "kafka",
    "importlib.metadata",
    "asyncio",
}
_PROGRAM = """
import sys
from replicator.cli.main import run
code = run({arguments!r})
print(code, *sorted(sys.modules), sep="\\n", file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    argv = [sys.executable, "-c", _PROGRAM.format(arguments=list(arguments))]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()
    assert code == "0" and "Usage: replicator" in done.stdout
    return set(modules)


def test_help_imports_nothing_heavy() -> None:
    found = imported("--help")
    assert found & HEAVY == set()
    assert len([name for name in found if name.startswith("replicator")]) <= 6


@pytest.mark.parametrize("group", ["pool", "volume", "config", "status", "connect", "doctor", "init"])
def test_a_commands_help_imports_only_its_own_module(group: str) -> None:
    found = imported(group, "--help")
    assert found & (HEAVY - {"importlib.metadata"}) == set()
    assert not any(name.startswith(("replicator.pool", "replicator.thin", "agent", "receiver")) for name in found)


def test_every_command_shows_an_example() -> None:
    import click

    from replicator.cli.main import cli

    context = click.Context(cli)
    for name in ("pool", "volume", "config", "status", "connect", "doctor", "init"):
        command = cli.get_command(context, name)
        assert command is not None
        inner = [command, *(command.commands.values() if isinstance(command, click.Group) else [])]
        for each in inner:
            assert each.help is not None and "\b\nreplicator " in inspect.cleandoc(each.help), each.name
