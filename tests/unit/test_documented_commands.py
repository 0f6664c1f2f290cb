"""Every command line in README, documents, units and examples is one that the command tree takes; nothing is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from replicator.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "deploy/kafka/compose.yaml"),
    *(ROOT / "deploy/ssh/authorized_keys", *sorted((ROOT / "deploy").glob("**/README.md"))),
    *(*sorted((ROOT / "deploy").glob("*.service")), *sorted((ROOT / "docs").glob("*.md"))),
]
FRAGMENTS = re.compile(  # where commands stand: indented lines, spans of code, units, quoted shell, forced commands
    r"""^(?:\ {4,}|\t)(?P<line>.+)$ | (?<!`)`(?P<span>[^`\n]+)` | ^ExecStart=(?P<unit>.+)$
      | (?P<quote>['"])(?P<quoted>replicator\ [^'"\n]+)(?P=quote) | \#\ +(?P<comment>docker\ compose\ .+)$""",
    re.MULTILINE | re.VERBOSE,
)
BEFORE = re.compile(r"^(?:sudo -u \w+ |docker compose exec \w+ |[\w/.-]+/(?=replicator ))+")
FEWEST = 90  # command lines that there were when this was written, less some: that none are found is no success


def fragments(text: str) -> Iterator[tuple[str, bool]]:
    """What looks like code, and whether it is a whole line (a span may name a command alone)."""
    for found in FRAGMENTS.finditer(text):
        whole = found["line"] or found["unit"] or found["quoted"] or found["comment"]
        yield whole or found["span"], bool(whole)
        for quoted in re.finditer(r"'(replicator [^']+)'|\"(replicator [^\"]+)\"", found["line"] or ""):
            yield quoted[1] or quoted[2], True
        if argv := re.match(r"\s*command: \[(.+)\]$", found["line"] or ""):  # of a container
            yield "replicator " + " ".join(map(str, json.loads(f"[{argv[1]}]"))), True
        for span in re.finditer(r"`(replicator [^`]+)`", found["line"] or ""):
            yield span[1], True


def command_lines(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words behind `replicator` of each command line."""
    for fragment, whole in fragments(text):
        lexer = shlex.shlex(fragment, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        if "replicator " not in fragment:
            continue
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;()<>"):
                line = BEFORE.sub("", shlex.join(words))
                if line.startswith("replicator "):
                    yield shlex.split(line)[1:], whole
                words = []
            else:
                words.append(word)


def fault(words: list[str], whole: bool) -> str | None:
    """What the command tree has against a line."""
    command: click.Command = cli
    context = click.Context(command, info_name="replicator")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest.pop(0))
        if found is None:
            return "no such command"
        command, context = found, click.Context(found, info_name=found.name, parent=context)
    if isinstance(command, click.Group):
        return "a group alone" if whole and not rest else _options_fault(command, context, rest)
    return _options_fault(command, context, rest) or (_missing(command, rest) if whole else None)


def _options_fault(command: click.Command, context: click.Context, rest: list[str]) -> str | None:
    try:
        values, extra, _ = command.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        return error.format_message()
    if extra and not isinstance(command, click.Group):
        return f"too many words: {extra}"
    for parameter in command.params:
        given = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and isinstance(given, str) and given not in parameter.type.choices:
            return f"{given!r} is none of {parameter.type.choices}"
    return None


def _missing(command: click.Command, rest: list[str]) -> str | None:
    """A required argument or option that isn't there."""
    values, _, given = command.make_parser(click.Context(command)).parse_args(list(rest))
    there = {each.name for each in given if isinstance(values.get(each.name or ""), str | tuple | list | bool)}
    lacking = [each.name for each in command.params if each.required and each.name not in there]
    return f"without {lacking}" if lacking and "help" not in there else None


def test_every_command_line_is_one() -> None:
    found = [(path, *each) for path in DOCUMENTS for each in command_lines(path.read_text())]
    assert len(found) >= FEWEST, len(found)
    faults = [(path.name, words, wrong) for path, words, whole in found if (wrong := fault(words, whole))]
    assert not faults, "\n".join(f"{name}: replicator {shlex.join(words)}: {wrong}" for name, words, wrong in faults)


@pytest.mark.parametrize(
    "line",
    [
        *("    replicator pol list /srv/pool", "    replicator pool list-all", "`replicator agent status POOL --jsn`"),
        *(
            "    replicator connect POOL vm1 --for windows",
            "    replicator pool create",
            "    replicator pool check a b",
        ),
        *("ExecStart=/opt/replicator/bin/replicator agent walk", "    x && replicator log see LOG | cat"),
    ],
)
def test_a_wrong_line_is_found(line: str) -> None:
    assert [fault(*each) for each in command_lines(line)] != [None] * len(list(command_lines(line)))
