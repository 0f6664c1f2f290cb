"""`replicator volume`: create, list, snapshot, clone, rename, rollback, delete, resize, diff (import, export: beside).

NAME is a volume, by name or UUID, or a snapshot by name, or `thin-ID`, any thin device by its number. What changes a
pool that another process has open goes through that process; nothing has to be stopped first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from replicator.cli.places import GROWTH, Growth, name_argument, opened_pool, pool_argument
from replicator.cli.point_notes import accept_gap_option, tell_taken
from replicator.cli.show import (
    SIZE,
    confirm,
    json_option,
    local_zone,
    print_done,
    print_json,
    print_table,
    size_text,
    yes_option,
)
from replicator.cli.volume_files import export, import_
from replicator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replicator.pool.opening import OwnedPool
    from replicator.pool.remote import RemotePool
    from replicator.repository.source import OpenedPoint, Source
    from replicator.thin.diff import DiffRuns

_SECTOR_BYTES = 512


@click.group()
def volume() -> None:
    """Make, copy, compare and delete volumes and snapshots of a pool.

    \b
    replicator volume create /srv/pool vm1 --size 8GiB
    """


volume.add_command(import_)
volume.add_command(export)


@volume.command()
@pool_argument
@name_argument
@click.option("--size", "size_bytes", type=SIZE, help="How long it is; over an origin by default as that.")
@click.option(
    "--origin",
    metavar="FILE|DEVICE|URI",
    help="A file, device or NBD URI that shines through where nothing was written.",
)
@json_option
def create(path: Path, name: str, size_bytes: int | None, origin: str | None, as_json: bool) -> None:
    """Create a volume: empty, or over an external origin.

    The origin is only read; what is written to the volume stands in the pool.

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
    with opened_pool(path) as pool:
        made = create_volume(pool, name, size or 0, behind)
    print_done(
        as_json, {"name": made.name, "uuid": str(made.uuid), "dev_id": made.dev_id, "size_bytes": made.size_bytes}
    )


@volume.command("list")
@pool_argument
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
@pool_argument
@name_argument
@click.argument("snapshot_name", metavar="SNAPSHOT")
@json_option
def snapshot(path: Path, name: str, snapshot_name: str, as_json: bool) -> None:
    """Keep a volume as it is now, under the name SNAPSHOT.

    \b
    replicator volume snapshot /srv/pool vm1 before-upgrade
    """
    from replicator.pool.volumes import create_snapshot

    with opened_pool(path) as pool:
        made = create_snapshot(pool, name, snapshot_name)
    print_done(as_json, {"name": made.name, "dev_id": made.dev_id, "size_bytes": made.size_bytes})


@volume.command()
@pool_argument
@click.argument("source", metavar="SOURCE")
@name_argument
@accept_gap_option
@json_option
def clone(path: Path, source: str, name: str, accept_gap: bool, as_json: bool) -> None:
    """Make a volume from a volume, snapshot or restore point.

    It may be written, and shares SOURCE's blocks where it isn't.

    \b
    replicator volume clone /srv/pool before-upgrade vm1-test
    replicator volume clone /srv/replica vm1@-5m vm1-test
    """
    from replicator.cli.point_documents import taken_document
    from replicator.repository.cloning import clone_named

    zone, point = local_zone(), dict[str, Any]()

    def tell(points: Source, taken: OpenedPoint) -> None:
        if as_json:
            point.update(taken_document(points, taken))
        else:
            tell_taken(points, taken, source, zone)

    with opened_pool(path) as pool:
        made = clone_named(pool, source, name, zone, accept_gap=accept_gap, tell=tell)
    facts = {"name": made.name, "uuid": str(made.uuid), "dev_id": made.dev_id, "size_bytes": made.size_bytes}
    print_done(as_json, {**facts, **point})


@volume.command()
@pool_argument
@name_argument
@click.argument("new_name", metavar="NEW-NAME")
@json_option
def rename(path: Path, name: str, new_name: str, as_json: bool) -> None:
    """Give a volume or a snapshot another name.

    A replica isn't renamed here: it has the name that it has at its source.

    \b
    replicator volume rename /srv/pool vm1 web1
    """
    from replicator.pool.devices import refuse_renaming_replica
    from replicator.pool.volumes import rename as give

    with opened_pool(path) as pool:
        refuse_renaming_replica(pool.view(), name)
        give(pool, name, new_name)
    print_done(as_json, {"name": new_name})


@volume.command()
@pool_argument
@name_argument
@click.argument("snapshot_name", metavar="SNAPSHOT")
@yes_option
@json_option
def rollback(path: Path, name: str, snapshot_name: str, yes: bool, as_json: bool) -> None:
    """Set a volume back to a snapshot; what was written since is gone.

    Refused (exit 4) while an NBD client has it open; where it is served to nobody, it is served on as it then is.

    \b
    replicator volume rollback /srv/pool vm1 before-upgrade --yes
    """
    from replicator.pool.clients import refuse_in_use
    from replicator.pool.devices import refuse_replica
    from replicator.pool.volumes import rollback as set_back

    with opened_pool(path) as pool:
        view = pool.view()
        refuse_replica(view, view.volume(name))
        refuse_in_use(pool, {view.volume(name).dev_id}, name)
        confirm(f"What was written to {name} since {snapshot_name} will be gone. Go on?", yes)
        made = set_back(pool, name, snapshot_name)
    print_done(as_json, {"name": made.name, "dev_id": made.dev_id, "size_bytes": made.size_bytes})


@volume.command()
@pool_argument
@name_argument
@click.option("--with-snapshots", is_flag=True, help="Also delete the volume's snapshots and restore points.")
@yes_option
@json_option
def delete(path: Path, name: str, with_snapshots: bool, yes: bool, as_json: bool) -> None:
    """Delete a volume or a snapshot, for good.

    Refused (exit 4) while an NBD client has it open; where it is served to nobody, it is served no more. Where the pool
    is served, its space comes back by and by.

    \b
    replicator volume delete /srv/pool before-upgrade --yes
    replicator volume delete /srv/pool vm1 --with-snapshots --yes
    """
    from replicator.pool.clients import refuse_in_use
    from replicator.pool.devices import find
    from replicator.pool.reading import read_beside
    from replicator.pool.volumes import delete_snapshot, delete_volume

    with opened_pool(path) as pool:
        with read_beside(pool) as reader:
            found = find(reader, name)
        snapshots = pool.view().snapshots_of(found.live.uuid) if found.live and with_snapshots else ()
        refuse_in_use(pool, {found.dev_id, *(each.dev_id for each in snapshots)}, name)
        confirm(f"{name} will be gone for good. Go on?", yes)
        if found.live is not None:
            delete_volume(pool, found.live.uuid, with_snapshots=with_snapshots)
        else:
            delete_snapshot(pool, found.snapshot or found.dev_id)
        left = pool.status().deleting_blocks * pool.block_bytes if _goes_on(pool) else 0
    print_done(as_json, {"deleted": name, **({"to_be_given_back_bytes": left} if left or as_json else {})})


def _goes_on(pool: OwnedPool | RemotePool) -> TypeGuard[RemotePool]:
    """Whether another process has the pool open: it gives the space back in the background; we do as we close."""
    from replicator.pool.remote import RemotePool

    return isinstance(pool, RemotePool)


@volume.command()
@pool_argument
@name_argument
@click.option("--size", type=GROWTH, required=True, help="The new size, or +SIZE.")
@yes_option
@json_option
def resize(path: Path, name: str, size: Growth, yes: bool, as_json: bool) -> None:
    """Give a volume another size, also while it is used.

    Shrinking discards what lies beyond the new end.

    \b
    replicator volume resize /srv/pool vm1 --size +4GiB
    """
    from replicator.pool.devices import refuse_replica

    with opened_pool(path) as pool:
        view = pool.view()
        found = view.volume(name)
        refuse_replica(view, found)
        wanted = size.total(found.size_bytes)
        _require_sectors(wanted)
        if wanted < found.size_bytes:
            confirm(f"What {name} holds beyond {size_text(wanted)} will be gone. Go on?", yes)
        pool.resize(found.uuid, wanted)
    print_done(as_json, {"name": found.name, "size_bytes": wanted})


@volume.command()
@pool_argument
@click.argument("base", metavar="BASE")
@click.argument("target", metavar="TARGET")
@json_option
def diff(path: Path, base: str, target: str, as_json: bool) -> None:
    """Show which blocks of TARGET differ from BASE.

    From the mappings alone, as runs of changed, added and removed blocks.

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
