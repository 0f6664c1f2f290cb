"""What commands print: JSON documents, tables for people, progress on a terminal, and questions before destruction.

Used by every command of the core, and by those of agent and receiver. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from typing import Any

import click

from replicator.cli.zones import zone_of
from replicator.errors import ReplicatorError, UsageError
from replicator.units import format_size, parse_duration, parse_size

SCHEMA_VERSION = 1


class SizeType(click.ParamType[int, Any]):
    """A size with a unit, in bytes; `+10GiB` is kept apart by the command that takes it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as error:
            self.fail(f"{error.message}; {error.mend}", param, ctx)


class DurationType(click.ParamType[float, Any]):
    """A duration with a unit, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(f"{error.message}; {error.mend}", param, ctx)


SIZE = SizeType()
DURATION = DurationType()
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
yes_option = click.option("--yes", is_flag=True, help="Go on without asking, as where nobody can answer: in scripts.")


def print_json(document: Any) -> None:
    """One document on stdout; a report (a dict) gets its schema_version first."""
    if isinstance(document, dict):
        document = {"schema_version": SCHEMA_VERSION, **document}
    click.echo(json.dumps(document, indent=2, default=_plain))


def print_json_array(documents: Iterable[Any]) -> None:
    """One array on stdout, an element at a time: a list that may be longer than memory."""
    begin = "["
    for document in documents:
        click.echo(f"{begin}\n{json.dumps(document, indent=2, default=_plain)}", nl=False)
        begin = ","
    click.echo("\n]" if begin == "," else "[]")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def status_code(severity: int) -> int:
    """The exit code of every `status`: 0 only if all is well, 1 if something isn't (and the document says what)."""
    return 1 if severity else 0


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns for people, numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for line in ([*header], *texts):
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        click.echo("  ".join(cells).rstrip())


def print_done(as_json: bool, facts: dict[str, Any]) -> None:
    """What was done: a document, or one line."""
    if as_json:
        print_json(facts)
        return
    texts = []
    for key, value in facts.items():
        if not isinstance(value, bool):
            name = key.removesuffix("_bytes").replace("_", " ")
            texts.append(f"{name} {size_text(value) if key.endswith('_bytes') else value}")
    click.echo(", ".join(texts))


def print_facts(facts: dict[str, Any]) -> None:
    """Name and value, a line each."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {value}")


def confirm(question: str, yes: bool) -> None:
    """Ask before something is destroyed; `yes` was given on the command line. ReplicatorError without an answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ReplicatorError(f"{question} Nobody is there to answer.", mend="add --yes if that is meant")
    click.confirm(question, abort=True, err=True)


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Progress on stderr while the block lasts, only on a terminal; call what it gives with the bytes done so far."""
    if not sys.stderr.isatty() or total_bytes <= 0:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    described = TextColumn("{task.description}", markup=False)  # as it is: names and labels may hold {} and []
    columns = (described, BarColumn(), DownloadColumn(True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda done: bar.update(task, completed=done)


def local_zone() -> tzinfo:
    """The zone that this process's local times are meant in, with its changes of clock (cli/zones)."""
    return zone_of(os.environ.get("TZ"))


def size_text(size_bytes: int) -> str:
    """A size for a table."""
    return format_size(size_bytes)
