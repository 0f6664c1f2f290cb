"""`replicator pool repair`: what is saved of damaged metadata, by device and range, and how to put it in place.

exit code   0 the file is written (what was lost is said) · 3 nothing is left to save · 4 in use, or the file is there
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import POOL
from replicator.cli.show import SIZE, json_option, print_json, print_table, progress, size_text
from replicator.errors import UsageError

if TYPE_CHECKING:
    from replicator.pool.repairing import PoolRepair
    from replicator.thin.repair import DeviceOutcome

RANGES_SHOWN = 8
"""Lost ranges that people see of one device; the JSON document has RANGES_LISTED."""
RANGES_LISTED = 1000
_TOP = (1 << 64) - 1


@click.command()
@click.argument("path", metavar="POOL", type=POOL)
@click.option(
    "--to", "target", type=click.Path(path_type=Path), metavar="FILE", help="The new file for the repaired metadata."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DEVICE|FILE",
    help="The data, where POOL has none; its length counts.",
)
@click.option("--block-size", "block_bytes", type=SIZE, help="The pool's, where no superblock is left to say it.")
@click.option("--dry-run", is_flag=True, help="Say what would be saved; write nothing.")
@json_option
def repair(
    path: Path, target: Path | None, data: Path | None, block_bytes: int | None, dry_run: bool, as_json: bool
) -> None:
    """Save what is intact of the metadata to a file.

    POOL stays as it is; nobody may have it open meanwhile. Give --to FILE, or --dry-run to see what would be saved.

    \b
    replicator pool repair /srv/pool --to /srv/metadata.repaired
    replicator pool repair /srv/pool --dry-run
    """
    from replicator.pool.repairing import Wish, repair_pool

    if target is None and not dry_run:
        raise UsageError("where to?", mend="say --to FILE, or --dry-run")
    wish = Wish(path, target or Path("FILE"), data, block_bytes, dry_run)
    size = (path / "metadata").stat().st_size if (path / "metadata").is_file() else 0
    with progress(f"repairing {path}", size) as done:
        found = repair_pool(wish, lambda _, count: done(count))
    if as_json:
        print_json(_document(found))
    else:
        _show(found)


def _document(found: PoolRepair) -> dict[str, Any]:
    return {
        "pool": str(found.wish.path),
        "to": None if found.wish.dry_run else str(found.wish.target),
        "dry_run": found.wish.dry_run,
        "intact": found.intact,
        "whole": found.whole,
        "read_from": [str(each) for each in found.read_from],
        "read_note": found.note or None,
        "older": found.is_older,
        "superblock": found.origin,
        "superblock_problem": found.problem or None,
        "devices": [_device(found, each) for each in found.devices],
        "lost_device_ids": [_range(each) for each in found.lost_ids],
        "nameless_devices": list(found.nameless),
        "gone": [{"dev_id": dev_id, "name": found.name_of(dev_id)} for dev_id in found.gone],
        "ambiguous_subtrees": found.ambiguous_subtrees,
        "unreadable_metadata_blocks": list(found.unreadable_blocks[:RANGES_LISTED]),
        "catalogue_problem": found.catalogue_problem or None,
        "written_bytes": found.written_bytes,
        "steps": list(found.steps),
    }


def _device(found: PoolRepair, each: DeviceOutcome) -> dict[str, Any]:
    return {
        "dev_id": each.dev_id,
        "name": found.name_of(each.dev_id),
        "saved_mappings": each.saved,
        "expected_mappings": each.expected,
        "put_back_mappings": each.put_back,
        "whole": each.whole,
        "lost_virtual_blocks": [_range(part) for part in each.lost[:RANGES_LISTED]],
        "lost_range_count": len(each.lost),
        "note": each.note or None,
    }


def _range(part: tuple[int, int]) -> dict[str, int | None]:
    first, last = part
    return {"first": first, "last": None if last == _TOP else last}


def _show(found: PoolRepair) -> None:
    from replicator.pool.metadata_device import is_mirrored

    if found.note:
        click.echo(f"copies: {found.note}")
    if found.problem:
        click.echo(f"superblock: {found.problem}")
        click.echo(f"superblock: taken from {found.origin}")
    rows = [
        (each.dev_id, found.name_of(each.dev_id), each.saved, "?" if each.expected is None else each.expected)
        for each in found.devices
    ]
    print_table(("DEVICE", "NAME", "SAVED", "OF"), rows)
    for each in found.devices:
        _show_loss(found, each)
    _show_names(found)
    if found.intact:
        click.echo(f"{found.wish.path}: its metadata has no damage")
    click.echo(
        f"{sum(each.saved for each in found.devices)} mappings {'can be' if found.wish.dry_run else 'were'} saved"
    )
    if found.wish.dry_run:
        return
    if found.intact and not found.is_older:
        click.echo(f"{found.wish.target}: a clean copy; there is nothing to put in place")
        return
    click.echo(f"{found.wish.target}: {size_text(found.written_bytes)} of metadata, checked: clean")
    click.echo("nothing of the pool was changed; to put it in place, with nobody using the pool:")
    for step in found.steps:
        click.echo(f"  {step}")
    if is_mirrored(found.wish.path):
        click.echo(f"it has no mirror then; to give it one: replicator pool mirror {found.wish.path} --to DEVICE")


def _show_loss(found: PoolRepair, each: DeviceOutcome) -> None:
    who = f"device {each.dev_id} ({found.name_of(each.dev_id)})"
    if each.note:
        click.echo(f"{who}: {each.note}")
    if each.put_back:
        click.echo(f"{who}: {each.put_back} mappings were below destroyed nodes, and are put back")
    for first, last in each.lost[:RANGES_SHOWN]:
        click.echo(
            f"{who}: virtual blocks {first} to {'the end' if last == _TOP else last} are lost: they read as zeros"
        )
    if len(each.lost) > RANGES_SHOWN:
        click.echo(f"{who}: and {len(each.lost) - RANGES_SHOWN} more ranges (--json lists them)")


def _show_names(found: PoolRepair) -> None:
    if found.unreadable_blocks:
        first = found.unreadable_blocks[0]
        click.echo(
            f"the disk can't read {len(found.unreadable_blocks)} metadata blocks, block {first} first: replace it"
        )
    for first, last in found.lost_ids:
        click.echo(f"devices {first} to {last}: those that no other structure names are lost")
    if found.ambiguous_subtrees:
        click.echo(f"{found.ambiguous_subtrees} subtrees are left out: nobody can say whose they are")
    if found.catalogue_problem:
        click.echo(f"the catalogue can't say names: {found.catalogue_problem}")
    for dev_id in found.gone:
        name = found.name_of(dev_id)
        click.echo(f"{name} (device {dev_id}) is in the catalogue, and lost")
    if found.nameless and found.names:
        ids = ", ".join(f"thin-{dev_id}" for dev_id in found.nameless)
        click.echo(
            f"not in the catalogue: {ids}; to read them, link POOL's metadata and data into an empty directory DIR "
            "(a pool without a catalogue), then: replicator volume export DIR thin-ID FILE"
        )
