"""`replicator volume`: create, list, snapshot, clone, rename, rollback, delete, resize, import, export, diff.

NAME is a volume, by name or UUID, or a snapshot by name, or `thin-ID`, any thin device by its number. What changes a
pool that another process has open goes through that process; nothing has to be stopped first.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from replicator.cli.places import GROWTH, POOL, Growth
from replicator.cli.show import SIZE, confirm, json_option, local_zone, print_json, print_table, progress, size_text
from replicator.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replicator.pool.opening import OwnedPool
    from replicator.pool.remote import RemotePool
    from replicator.thin.diff import DiffRuns

_SECTOR_BYTES = 512
_yes_option = click.option("--yes", is_flag=True, help="Don't ask.")
_pool_argument = click.argument("path", metavar="POOL", type=POOL)
_name_argument = click.argument("name", metavar="NAME")


@click.group()
def volume() -> None:
    """Make, copy, compare and delete volumes and snapshots of a pool.

    \b
    replicator volume create /srv/pool vm1 --size 8GiB
    """


def _opened(path: Path) -> closing[OwnedPool | RemotePool]:
    from replicator.pool.opening import open_pool

    return closing(open_pool(path, waiting=lambda what: click.echo(what, err=True)))


@volume.command()
@_pool_argument
@_name_argument
@click.option("--size", "size_bytes", type=SIZE, help="By default the size of the origin.")
@click.option("--origin", help="A file, device or NBD URI that shines through where nothing was written.")
@json_option
def create(path: Path, name: str, size_bytes: int | None, origin: str | None, as_json: bool) -> None:
    """Create the volume NAME: empty, or over an external origin, which is only read.

    \b
    replicator volume create /srv/pool vm1 --size 8GiB
    replicator volume create /srv/pool vm2 --origin /srv/images/base.img
    """
    from replicator.history.names import check_name
    from replicator.pool.origins import identify_origin
    from replicator.pool.volumes import create_volume

    check_name(name)
    behind = None if origin is None else identify_origin(origin)
    if size_bytes is None and behind is None:
        raise UsageError("a volume needs a size", mend="say --size SIZE")
    size = size_bytes if size_bytes is not None or behind is None else behind.size_bytes
    _require_sectors(size or 0)
    with _opened(path) as pool:
        made = create_volume(pool, name, size or 0, behind)
    _tell(as_json, {"name": made.name, "uuid": str(made.uuid), "dev_id": made.dev_id, "size_bytes": made.size_bytes})


@volume.command("list")
@_pool_argument
@json_option
def list_(path: Path, as_json: bool) -> None:
    """List POOL's volumes, with how much of each is mapped.

    \b
    replicator volume list /srv/pool --json
    """
    from replicator.pool.reading import read_pool
    from replicator.pool.volumes import list_volumes

    with read_pool(path) as reader:
        found = list_volumes(reader.view(), reader.facts())
        block_bytes = reader.block_bytes
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "uuid": str(each.uuid),
                    "dev_id": each.dev_id,
                    "size_bytes": each.size_bytes,
                    "mapped_blocks": each.mapped_blocks,
                    "origin": None if each.origin is None else each.origin.location,
                    "snapshots": list(each.snapshots),
                }
                for each in found
            ]
        )
        return
    if not found:
        click.echo(f"{path} has no volumes")
        return
    rows = []
    for each in found:
        mapped = size_text(each.mapped_blocks * block_bytes)
        behind = "" if each.origin is None else each.origin.location
        rows.append([each.name, size_text(each.size_bytes), mapped, ", ".join(each.snapshots), behind, each.uuid])
    print_table(["name", "size", "mapped", "snapshots", "origin", "uuid"], rows)


@volume.command()
@_pool_argument
@_name_argument
@click.argument("snapshot_name", metavar="SNAPSHOT")
@json_option
def snapshot(path: Path, name: str, snapshot_name: str, as_json: bool) -> None:
    """Keep the volume NAME as it is now, under the name SNAPSHOT.

    \b
    replicator volume snapshot /srv/pool vm1 before-upgrade
    """
    from replicator.pool.volumes import create_snapshot

    with _opened(path) as pool:
        made = create_snapshot(pool, name, snapshot_name)
    _tell(as_json, {"name": made.name, "dev_id": made.dev_id, "size_bytes": made.size_bytes})


@volume.command()
@_pool_argument
@click.argument("source", metavar="SOURCE")
@_name_argument
@json_option
def clone(path: Path, source: str, name: str, as_json: bool) -> None:
    """Make the volume NAME from the volume, snapshot or restore point SOURCE, sharing its blocks.

    \b
    replicator volume clone /srv/pool before-upgrade vm1-test
    replicator volume clone /srv/replica vm1@-5m vm1-test
    """
    from replicator.repository.cloning import clone_named

    with _opened(path) as pool:
        made = clone_named(pool, source, name, local_zone())
    _tell(as_json, {"name": made.name, "uuid": str(made.uuid), "dev_id": made.dev_id, "size_bytes": made.size_bytes})


@volume.command()
@_pool_argument
@_name_argument
@click.argument("new_name", metavar="NEW-NAME")
@json_option
def rename(path: Path, name: str, new_name: str, as_json: bool) -> None:
    """Give a volume or a snapshot another name.

    \b
    replicator volume rename /srv/pool vm1 web1
    """
    from replicator.pool.volumes import rename as give

    with _opened(path) as pool:
        give(pool, name, new_name)
    _tell(as_json, {"name": new_name})


@volume.command()
@_pool_argument
@_name_argument
@click.argument("snapshot_name", metavar="SNAPSHOT")
@_yes_option
@json_option
def rollback(path: Path, name: str, snapshot_name: str, yes: bool, as_json: bool) -> None:
    """Set the volume NAME back to SNAPSHOT; what was written since is gone.

    \b
    replicator volume rollback /srv/pool vm1 before-upgrade --yes
    """
    from replicator.pool.devices import refuse_replica
    from replicator.pool.volumes import rollback as set_back

    with _opened(path) as pool:
        view = pool.view()
        refuse_replica(view, view.volume(name))
        confirm(f"What was written to {name} since {snapshot_name} will be gone. Go on?", yes)
        made = set_back(pool, name, snapshot_name)
    _tell(as_json, {"name": made.name, "dev_id": made.dev_id, "size_bytes": made.size_bytes})


@volume.command()
@_pool_argument
@_name_argument
@click.option("--with-snapshots", is_flag=True, help="Also delete the volume's snapshots and restore points.")
@_yes_option
@json_option
def delete(path: Path, name: str, with_snapshots: bool, yes: bool, as_json: bool) -> None:
    """Delete the volume or snapshot NAME, for good; where the pool is served, its space comes back by and by.

    \b
    replicator volume delete /srv/pool before-upgrade --yes
    """
    from replicator.pool.devices import find
    from replicator.pool.reading import read_beside
    from replicator.pool.volumes import delete_snapshot, delete_volume

    with _opened(path) as pool:
        with read_beside(pool) as reader:
            found = find(reader, name)
        _refuse_served(pool, found.dev_id, name)
        confirm(f"{name} will be gone for good. Go on?", yes)
        if found.live is not None:
            delete_volume(pool, found.live.uuid, with_snapshots=with_snapshots)
        else:
            delete_snapshot(pool, found.dev_id)
        left = pool.status().deleting_blocks * pool.block_bytes if _goes_on(pool) else 0
    _tell(as_json, {"deleted": name, **({"to_be_given_back_bytes": left} if left or as_json else {})})


def _goes_on(pool: OwnedPool | RemotePool) -> TypeGuard[RemotePool]:
    """Whether another process has the pool open: it gives the space back in the background; we do as we close."""
    from replicator.pool.remote import RemotePool

    return isinstance(pool, RemotePool)


def _refuse_served(pool: OwnedPool | RemotePool, dev_id: int, name: str) -> None:
    if _goes_on(pool) and any(each.dev_id == dev_id for each in pool.exports()):
        raise ConflictError(f"{name} is being served over NBD", mend="stop serving it first")


@volume.command()
@_pool_argument
@_name_argument
@click.option("--size", type=GROWTH, required=True, help="The new size, or +SIZE.")
@_yes_option
@json_option
def resize(path: Path, name: str, size: Growth, yes: bool, as_json: bool) -> None:
    """Give the volume NAME another size, also while it is used; shrinking discards what lies beyond.

    \b
    replicator volume resize /srv/pool vm1 --size +4GiB
    """
    from replicator.pool.devices import refuse_replica

    with _opened(path) as pool:
        view = pool.view()
        found = view.volume(name)
        refuse_replica(view, found)
        wanted = size.total(found.size_bytes)
        _require_sectors(wanted)
        if wanted < found.size_bytes:
            confirm(f"What {name} holds beyond {size_text(wanted)} will be gone. Go on?", yes)
        pool.resize(found.uuid, wanted)
    _tell(as_json, {"name": found.name, "size_bytes": wanted})


@volume.command("import")
@_pool_argument
@_name_argument
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@_yes_option
@json_option
def import_(path: Path, name: str, file: Path, yes: bool, as_json: bool) -> None:
    """Copy FILE, an image or a block device, into the volume NAME, which is created if it isn't there.

    \b
    replicator volume import /srv/pool vm1 disk.img
    """
    from replicator.pool.importing import import_file

    with _opened(path) as pool:
        if any(name in (each.name, str(each.uuid)) for each in pool.view().volumes):
            confirm(f"What {name} holds will be replaced by {file}. Go on?", yes)
        with ExitStack() as bars:
            made = import_file(pool, name, file, progress=_bar(f"importing {name}", bars))
    facts = {"name": made.volume.name, "uuid": str(made.volume.uuid), "dev_id": made.volume.dev_id}
    sizes = {"size_bytes": made.volume.size_bytes, "written_bytes": made.written_bytes}
    _tell(as_json, {**facts, **sizes, "created": made.created})


@volume.command()
@_pool_argument
@_name_argument
@click.argument("file", metavar="FILE|-")
@click.option("--size", "size_bytes", type=SIZE, help="End there, and not at the device's end (foreign pools).")
@_yes_option
@json_option
def export(path: Path, name: str, file: str, size_bytes: int | None, yes: bool, as_json: bool) -> None:
    """Copy the volume or snapshot NAME out to FILE, or with `-` to stdout; holes stay holes.

    \b
    replicator volume export /srv/pool vm1 disk.img
    """
    from replicator.pool.exporting import export_device

    target = _export_target(file, yes)
    with ExitStack() as bars:
        made = export_device(path, name, target, size_bytes=size_bytes, progress=_bar(f"exporting {name}", bars))
    if file != "-":
        _tell(as_json, {"name": name, "file": file, "size_bytes": made.size_bytes, "read_bytes": made.read_bytes})


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


@volume.command()
@_pool_argument
@click.argument("base", metavar="BASE")
@click.argument("target", metavar="TARGET")
@json_option
def diff(path: Path, base: str, target: str, as_json: bool) -> None:
    """Show which blocks of TARGET differ from BASE, from the mappings alone: runs of changed, added and removed.

    \b
    replicator volume diff /srv/pool before-upgrade vm1 --json
    """
    from replicator.errors import UnavailableError
    from replicator.pool.devices import held_still
    from replicator.thin.diff import diff as runs_between

    with held_still(path, [base, target]) as (reader, (old, new)):
        begin, between, end = _frame(as_json, reader.block_bytes)
        sys.stdout.write(begin)
        first = True
        for runs in runs_between(reader.metadata_store(), old.root, new.root):
            if not (old.lease.stands and new.lease.stands):
                raise UnavailableError("the pool's owner ended meanwhile, so the diff is void", mend="ask again")
            for text in _run_texts(runs, as_json):
                sys.stdout.write(text if first else between + text)
                first = False
        sys.stdout.write(end if as_json or not first else "")
    sys.stdout.flush()


def _frame(as_json: bool, block_bytes: int) -> tuple[str, str, str]:
    """What stands before, between and behind the runs: a diff of a large volume doesn't fit in memory."""
    if as_json:
        return f'{{"schema_version": 1, "block_size_bytes": {block_bytes}, "runs": [', ",\n  ", "]}\n"
    return "", "\n", "\n"


def _run_texts(runs: DiffRuns, as_json: bool) -> Iterator[str]:
    from replicator.thin.diff import KIND_NAMES

    for begin, end, kind in zip(runs.begin.tolist(), runs.end.tolist(), runs.kind.tolist(), strict=True):
        if as_json:
            yield json.dumps({"begin": begin, "end": end, "kind": KIND_NAMES[kind]})
        else:
            yield f"{KIND_NAMES[kind]:8}{begin}..{end}"


def _require_sectors(size_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % _SECTOR_BYTES:
        raise UsageError(f"{size_bytes} bytes can't be a volume's size: it is whole sectors of {_SECTOR_BYTES} bytes")


def _tell(as_json: bool, facts: dict[str, Any]) -> None:
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
