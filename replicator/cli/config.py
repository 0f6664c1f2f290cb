"""`replicator init` and `replicator config`: the files that agent and receiver are run from.

The core doesn't know what stands in them: a host that has commands (entry-point group replicator.commands) has a
module `config` beside them, with TEMPLATE, DEFAULT_PATH, and load_config(path), whose value has `effective()`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from replicator.cli.show import json_option, print_json
from replicator.errors import ConflictError, DeviceError, NotFoundError, UsageError

_KINDS = ("agent", "receiver")
_kind_option = click.option(
    "--for", "kind", type=click.Choice(_KINDS), help="Whose file it is, if its name doesn't say."
)


@click.command()
@click.argument("kind", type=click.Choice(_KINDS))
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where; by default /etc/replicator/KIND.toml.",
)
@json_option
def init(kind: str, target: Path | None, as_json: bool) -> None:
    """Write a commented configuration file for the agent or the receiver; never over one that is there.

    \b
    replicator init agent --to agent.toml
    """
    settings = _settings(kind)
    path = target or Path(settings.DEFAULT_PATH)
    _write_new(path, str(settings.TEMPLATE))
    if as_json:
        print_json({"kind": kind, "file": str(path)})
        return
    click.echo(f"{path} is written; edit it, then:")
    click.echo(f"  replicator config check {path}")
    click.echo(f"  replicator {kind} run --config {path}")


@click.group()
def config() -> None:
    """Check a configuration file, or show what it comes to.

    \b
    replicator config check /etc/replicator/agent.toml
    """


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@_kind_option
@json_option
def check(file: Path, kind: str | None, as_json: bool) -> None:
    """Read FILE, and say what is wrong with it.

    Exit 2 for a mistake, with the key and what was expected.

    \b
    replicator config check /etc/replicator/agent.toml
    """
    found = _kind_of(file, kind)
    _settings(found).load_config(file)
    if as_json:
        print_json({"file": str(file), "kind": found, "ok": True})
    else:
        click.echo(f"{file}: a configuration that the {found} can run with")


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--effective", is_flag=True, help="With all defaults filled in (otherwise what the file says).")
@_kind_option
@json_option
def show(file: Path, effective: bool, kind: str | None, as_json: bool) -> None:
    """Show what FILE says, or with --effective what it comes to.

    \b
    replicator config show --effective /etc/replicator/agent.toml
    """
    found = _kind_of(file, kind)
    value = _settings(found).load_config(file)
    document = value.effective() if effective else _as_written(file)
    if as_json:
        print_json({"file": str(file), "kind": found, "settings": document})
        return
    for line in _lines(document):
        click.echo(line)


def _as_written(file: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(file.read_text(encoding="utf-8"))


def _lines(table: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            lines += _lines(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                lines += _lines(each, f"{prefix}{key}[{number}].")
        else:
            lines.append(f"{prefix}{key} = {_value(value)}")
    return lines


def _value(value: Any) -> str:
    import json

    return "-" if value is None else json.dumps(value, default=str)


def _kind_of(file: Path, given: str | None) -> str:
    """Whose file it is: as given, or as its name says."""
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}", mend=f"replicator init agent --to {file}")
    named = [kind for kind in _KINDS if kind in file.name]
    if given is None and len(named) != 1:
        raise UsageError(f"the name {file.name} doesn't say whose configuration it is", mend="add --for agent|receiver")
    return given or named[0]


def _settings(kind: str) -> Any:
    """The host's module `config`."""
    from importlib import import_module
    from importlib.metadata import entry_points

    for point in entry_points(group="replicator.commands", name=kind):
        return import_module(f"{point.module.partition('.')[0]}.config")
    mend = f"in replicator's checkout: {sys.executable} -m pip install ."
    raise NotFoundError(f"the {kind} isn't installed here", mend=mend)


def _write_new(path: Path, text: str) -> None:
    """The whole file under its name, or none; ConflictError for one that is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()
    except FileExistsError:
        raise ConflictError(f"{path} is there already", mend="name another file: --to FILE") from None
    except FileNotFoundError:
        raise NotFoundError(f"there is no folder {path.parent}", mend=f"mkdir -p {path.parent}") from None
    except OSError as error:
        raise DeviceError(f"writing {path}", 0, error.errno or 0, error.strerror or str(error)) from error
