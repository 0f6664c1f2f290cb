"""`replicator volume import` and `export`: a volume from a file, and to one, sparse both ways.

Over pool/importing and pool/exporting; part of cli/volume.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.cli.places import name_argument, opened_pool, pool_argument
from replicator.cli.show import SIZE, confirm, json_option, print_done, progress, yes_option
from replicator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command("import")
@pool_argument
@name_argument
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@yes_option
@json_option
def import_(path: Path, name: str, file: Path, yes: bool, as_json: bool) -> None:
    """Copy an image or a block device into a volume.

    It is created if it isn't there; what one that is there holds is replaced.

    \b
    replicator volume import /srv/pool vm1 disk.img
    """
    from replicator.pool.importing import import_file

    with opened_pool(path) as pool:
        if any(name in (each.name, str(each.uuid)) for each in pool.view().volumes):
            confirm(f"What {name} holds will be replaced by {file}. Go on?", yes)
        with ExitStack() as bars:
            made = import_file(pool, name, file, progress=_bar(f"importing {name}", bars))
    facts = {"name": made.volume.name, "uuid": str(made.volume.uuid), "dev_id": made.volume.dev_id}
    sizes = {"size_bytes": made.volume.size_bytes, "written_bytes": made.written_bytes}
    print_done(as_json, {**facts, **sizes, "created": made.created})


@click.command()
@pool_argument
@name_argument
@click.argument("file", metavar="FILE|-")
@click.option("--size", "size_bytes", type=SIZE, help="End there, and not at the device's end (foreign pools).")
@yes_option
@json_option
def export(path: Path, name: str, file: str, size_bytes: int | None, yes: bool, as_json: bool) -> None:
    """Copy a volume or a snapshot out to a file, or to stdout.

    FILE `-` is stdout; holes stay holes.

    \b
    replicator volume export /srv/pool vm1 disk.img
    """
    from replicator.pool.exporting import export_device

    target = _export_target(file, yes)
    with ExitStack() as bars:
        made = export_device(path, name, target, size_bytes=size_bytes, progress=_bar(f"exporting {name}", bars))
    if file != "-":
        print_done(as_json, {"name": name, "file": file, "size_bytes": made.size_bytes, "read_bytes": made.read_bytes})


def _bar(what: str, bars: ExitStack) -> Callable[[int, int], None]:
    """A progress bar that begins once its whole is known, and ends with `bars`."""
    started: list[Callable[[int], None]] = []

    def tell(done: int, total: int) -> None:
        if not started:
            started.append(bars.enter_context(progress(what, total)))
        started[0](done)

    return tell


def _export_target(file: str, yes: bool) -> Path | int:
    if file == "-":
        sys.stdout.flush()
        return sys.stdout.fileno()
    target = Path(file)
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} isn't a file", mend=f"replicator volume export POOL NAME - | dd of={target} bs=1M")
    if target.exists():
        confirm(f"{target} is there, and will be replaced. Go on?", yes)
    return target
