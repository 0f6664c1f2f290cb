"""What a first-time user reads: every command says what it is for in a line, gives an example, and names its values."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from replicator.cli.main import cli

COLUMNS = 80
VAGUE = {"TEXT", "INTEGER", "FLOAT", "PATH", "FILENAME"}


def _walk(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inside = command.get_command(context, name)
            assert inside is not None
            yield from _walk(inside, click.Context(inside, info_name=name, parent=context, terminal_width=COLUMNS))


EVERY = list(_walk(cli, click.Context(cli, info_name="replicator", terminal_width=COLUMNS)))


@pytest.mark.parametrize(("command", "context"), EVERY, ids=[context.command_path for _, context in EVERY])
def test_its_help_is_whole(command: click.Command, context: click.Context) -> None:
    shown = command.get_help(context)
    if isinstance(command, click.Group):
        listed = shown.partition("Commands:")[2]
        assert listed and "..." not in listed, "each in one line"
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name
            value = "" if option.is_flag else option.make_metavar(context)
            assert value not in VAGUE and (option.name != "log" or value == "LOG"), option.name


@pytest.mark.parametrize(("command", "context"), EVERY, ids=[context.command_path for _, context in EVERY])
def test_its_examples_are_lines_that_it_takes(command: click.Command, context: click.Context) -> None:
    examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("replicator ")]
    if context.command_path in ("replicator", "replicator log serve"):
        return  # these show other commands, and a line of authorized_keys
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" | ")[0].partition(" > ")[0])[1:]
        parsed: click.Command = cli
        while isinstance(parsed, click.Group):
            inside = parsed.get_command(context, words.pop(0))
            assert inside is not None, example
            parsed = inside
        parsed.make_context("replicator", words)
