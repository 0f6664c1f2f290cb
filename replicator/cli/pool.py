"""`replicator pool`: create, status, check, dump, repair, grow, size-hint, reserve- and release-metadata-snap.

check    exit 0 clean (warnings are shown), 3 damage or leaks, each finding listed; beside a running owner the
         mappings of a metadata snapshot are checked, and reference counts are not
dump     the XML of thin_dump, as its pieces are read
mirror, repair   in cli/pool_mirror, cli/pool_repair
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import GROWTH, POOL, Growth
from replicator.cli.pool_mirror import mirror, mirror_document, mirror_text
from replicator.cli.pool_repair import repair
from replicator.cli.show import SIZE, json_option, print_facts, print_json, size_text
from replicator.errors import UsageError

if TYPE_CHECKING:
    from replicator.pool.inspection import PoolCheck
    from replicator.pool.summary import PoolSummary

PRESETS = ("snapshots", "provisioning", "throughput")
_DAMAGE = 3


@click.group()
def pool() -> None:
    """Create, look at, check, repair and grow a pool.

    \b
    replicator pool create /srv/pool --size 100GiB
    """


pool.add_command(mirror)
pool.add_command(repair)


@pool.command()
@click.argument("path", metavar="POOL", type=POOL)
@click.option("--size", "size_bytes", type=SIZE, help="Room for data; with --data by default all of it.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DEVICE|FILE",
    help="A block device, or a file, that holds nothing.",
)
@click.option(
    "--metadata", type=click.Path(path_type=Path), metavar="DEVICE|FILE", help="Another one, for the metadata."
)
@click.option(
    "--metadata-mirror",
    "mirror_path",
    type=click.Path(path_type=Path),
    metavar="DEVICE|FILE",
    help="A second copy of it.",
)
@click.option("--block-size", "block_bytes", type=SIZE, help="64KiB (the default) to 1GiB, for the pool's whole life.")
@click.option("--metadata-size", "metadata_bytes", type=SIZE, help="By default what `pool size-hint` says.")
@click.option(
    "--low-water", default="10%", show_default=True, metavar="PERCENT|SIZE", help="Warn when less than that is free."
)
@click.option("--preset", type=click.Choice(PRESETS), help="A block size by what the pool is for.")
@json_option
def create(
    path: Path,
    size_bytes: int | None,
    data: Path | None,
    metadata: Path | None,
    mirror_path: Path | None,
    block_bytes: int | None,
    metadata_bytes: int | None,
    low_water: str,
    preset: str | None,
    as_json: bool,
) -> None:
    """Create a pool in POOL, a new or empty directory.

    \b
    replicator pool create /srv/pool --size 100GiB
    replicator pool create /srv/pool --data /dev/vg/data --metadata /dev/vg/meta --block-size 512KiB
    """
    from replicator.pool.creation import PoolPlan, create_pool
    from replicator.pool.mirroring import create_mirrored

    wanted = _block_bytes(block_bytes, preset)
    plan = PoolPlan(size_bytes, data, metadata, wanted, metadata_bytes, low_water)
    new = create_pool(path, plan) if mirror_path is None else create_mirrored(path, plan, mirror_path)
    if as_json:
        sizes = {"size_bytes": new.data_blocks * new.block_bytes, "block_bytes": new.block_bytes}
        about = {**sizes, "metadata_bytes": new.metadata_bytes, "metadata_mirror": mirror_path, "warning": new.warning}
        print_json({"pool": str(new.path), "uuid": str(new.uuid), **about})
        return
    room, blocks = size_text(new.data_blocks * new.block_bytes), size_text(new.block_bytes)
    click.echo(f"{new.path}: a pool of {room} in blocks of {blocks}, {size_text(new.metadata_bytes)} of metadata")
    if new.warning:
        click.echo(f"warning: {new.warning}", err=True)


@pool.command()
@click.argument("path", metavar="POOL", type=POOL)
@json_option
def status(path: Path, as_json: bool) -> None:
    """Show how full POOL is and who has it open.

    \b
    replicator pool status /srv/pool --json
    """
    from replicator.pool.summary import summarise

    found = summarise(path)
    if as_json:
        print_json(_status_document(found))
    else:
        print_facts(_status_facts(found))


@pool.command()
@click.argument("path", metavar="POOL", type=POOL)
@json_option
def check(path: Path, as_json: bool) -> int:
    """Check POOL's metadata: exit 0 clean, 3 damaged.

    Beside a running owner the mappings are checked, and the reference counts are not.

    \b
    replicator pool check /srv/pool
    """
    from replicator.pool.inspection import check_pool

    found = check_pool(path)
    if as_json:
        print_json(_check_document(path, found))
    else:
        _show_check(path, found)
    return 0 if found.report.clean else _DAMAGE


@pool.command()
@click.argument("path", metavar="POOL", type=POOL)
@click.option("--held", is_flag=True, help="The metadata snapshot instead of the live metadata.")
@click.option("--json", "as_json", is_flag=True, help="Errors as JSON; the dump is XML.")
def dump(path: Path, held: bool, as_json: bool) -> None:
    """Print POOL's mappings as thin_dump's XML.

    Beside a running owner those of this instant.

    \b
    replicator pool dump /srv/pool > pool.xml
    """
    from replicator.pool.inspection import inspected
    from replicator.thin.dump import dump as pieces_of

    with inspected(path, held=held) as found:
        for piece in pieces_of(found.view):
            sys.stdout.write(piece)
    sys.stdout.flush()


@pool.command()
@click.argument("path", metavar="POOL", type=POOL)
@click.option("--data", type=GROWTH, help="The new size of the data, or +SIZE.")
@click.option("--metadata", type=GROWTH, help="The new size of the metadata, or +SIZE.")
@json_option
def grow(path: Path, data: Growth | None, metadata: Growth | None, as_json: bool) -> None:
    """Grow POOL, also while it is in use.

    Files are grown here; block devices first by whoever made them (lvextend, …).

    \b
    replicator pool grow /srv/pool --data +100GiB
    """
    from replicator.pool.opening import grow_pool, open_pool
    from replicator.units import METADATA_BLOCK_BYTES

    if data is None and metadata is None:
        raise UsageError("nothing is to grow", mend="say --data +SIZE, --metadata +SIZE, or both")
    with closing(open_pool(path)) as opened:
        now = opened.status()
        data_bytes = data.total(now.data_blocks * now.block_bytes) if data else 0
        metadata_bytes = metadata.total(now.metadata_blocks * METADATA_BLOCK_BYTES) if metadata else 0
        _require_multiple(data_bytes, now.block_bytes, "data")
        _require_multiple(metadata_bytes, METADATA_BLOCK_BYTES, "metadata")
        grow_pool(opened, data_bytes=data_bytes, metadata_bytes=metadata_bytes)
        after = opened.status()
    room, map_room = after.data_blocks * after.block_bytes, after.metadata_blocks * METADATA_BLOCK_BYTES
    if as_json:
        print_json({"pool": str(path), "size_bytes": room, "metadata_bytes": map_room})
    else:
        click.echo(f"{path}: {size_text(room)} of data, {size_text(map_room)} of metadata")


@pool.command("size-hint")
@click.option("--size", "size_bytes", type=SIZE, required=True, help="Room for data.")
@click.option("--block-size", "block_bytes", type=SIZE, help="64KiB (the default) to 1GiB.")
@click.option("--preset", type=click.Choice(PRESETS), help="A block size by what the pool is for.")
@json_option
def size_hint(size_bytes: int, block_bytes: int | None, preset: str | None, as_json: bool) -> None:
    """Say how much metadata a pool of a size wants.

    \b
    replicator pool size-hint --size 1TiB --block-size 64KiB
    """
    from replicator.thin.geometry import metadata_size

    wanted = _block_bytes(block_bytes, preset)
    advised = metadata_size(size_bytes, wanted)
    if as_json:
        sizes = {"size_bytes": size_bytes, "block_bytes": wanted, "metadata_bytes": advised.size_bytes}
        print_json({**sizes, "warning": advised.warning})
        return
    click.echo(f"{size_text(advised.size_bytes)} of metadata ({advised.size_bytes} bytes)")
    if advised.warning:
        click.echo(f"warning: {advised.warning}", err=True)


@pool.command("reserve-metadata-snap")
@click.argument("path", metavar="POOL", type=POOL)
@json_option
def reserve_metadata_snap(path: Path, as_json: bool) -> None:
    """Freeze a copy of the mappings for other programs.

    They read it with -m (thin_dump -m, thin_delta -m), while the pool is used.

    \b
    replicator pool reserve-metadata-snap /srv/pool
    """
    _hold(path, True, as_json)


@pool.command("release-metadata-snap")
@click.argument("path", metavar="POOL", type=POOL)
@json_option
def release_metadata_snap(path: Path, as_json: bool) -> None:
    """Let go of the copy that was frozen.

    \b
    replicator pool release-metadata-snap /srv/pool
    """
    _hold(path, False, as_json)


def _hold(path: Path, held: bool, as_json: bool) -> None:
    from replicator.pool.opening import open_pool

    with closing(open_pool(path)) as opened:
        block = opened.set_metadata_snapshot(held)
    if as_json:
        print_json({"pool": str(path), "held_root": block})
    else:
        click.echo(f"{path}: held root in metadata block {block}" if held else f"{path}: no metadata snapshot any more")


def _block_bytes(given: int | None, preset: str | None) -> int:
    from replicator.thin.geometry import PRESETS as SIZES
    from replicator.thin.geometry import require_block_bytes

    if given is not None and preset is not None:
        raise UsageError("--block-size and --preset say the same thing", mend="give one of them")
    wanted = given if given is not None else SIZES[preset or "snapshots"]
    require_block_bytes(wanted)
    return wanted


def _require_multiple(size_bytes: int, unit_bytes: int, what: str) -> None:
    if size_bytes % unit_bytes:
        raise UsageError(f"{size_bytes} bytes of {what} aren't whole blocks of {size_text(unit_bytes)}")


def _status_document(found: PoolSummary) -> dict[str, Any]:
    now = found.status
    return {
        "pool": str(found.path),
        "uuid": str(now.uuid),
        "foreign": found.foreign,
        "owner_pid": now.owner_pid or None,
        "status_line": found.status_line,
        "transaction_id": now.transaction_id,
        "time": now.time,
        "block_bytes": now.block_bytes,
        "data": _used(found.used_data_blocks, now.data_blocks, now.block_bytes),
        "metadata": _used(found.used_metadata_blocks, now.metadata_blocks, 4096),
        "metadata_mirror": mirror_document(found.path, found.mirror),
        "low_water_blocks": now.low_water_blocks,
        "below_low_water": found.is_low,
        "held_root": now.held_root or None,
        "needs_check": found.needs_check,
        "failed": now.failed,
        "dirty_count": now.dirty_count,
        "deleting": {
            "devices": now.deleting_devices,
            "left_blocks": now.deleting_blocks,
            "total_blocks": now.deleting_total_blocks,
            "left_bytes": now.deleting_blocks * now.block_bytes,
        },
        "volumes": found.volume_count,
        "snapshots": found.snapshot_count,
    }


def _used(used: int, total: int, block_bytes: int) -> dict[str, int]:
    return {
        "used_blocks": used,
        "total_blocks": total,
        "used_bytes": used * block_bytes,
        "total_bytes": total * block_bytes,
    }


def _status_facts(found: PoolSummary) -> dict[str, Any]:
    now = found.status
    data, metadata = found.used_data_blocks * now.block_bytes, found.used_metadata_blocks * 4096
    low = f", below its low water of {size_text(now.low_water_blocks * now.block_bytes)}" if found.is_low else ""
    facts = {
        "pool": f"{found.path} ({now.uuid})" if not found.foreign else f"{found.path}, which another program wrote",
        "data": f"{size_text(data)} of {size_text(now.data_blocks * now.block_bytes)} used{low}",
        "metadata": f"{size_text(metadata)} of {size_text(now.metadata_blocks * 4096)} used",
        "blocks of": size_text(now.block_bytes),
        "volumes": found.volume_count,
        "snapshots": found.snapshot_count,
        "open in": f"process {now.owner_pid}" if now.owner_pid else "no process",
        "status line": found.status_line,
    }
    if found.mirror is not None:
        facts["mirror"] = mirror_text(found.path, found.mirror)
    if now.deleting_devices:
        left, total = (size_text(each * now.block_bytes) for each in (now.deleting_blocks, now.deleting_total_blocks))
        facts["deleting"] = f"{left} of {total} still to be given back"
    if now.failed:
        facts["failed"] = now.failed
    if found.is_low:
        facts["mend"] = f"replicator pool grow {found.path} --data +SIZE"
    return facts


def _check_document(path: Path, found: PoolCheck) -> dict[str, Any]:
    from replicator.thin.report import Severity

    report = found.report
    findings = [{**asdict(each), "severity": each.severity.value, "kind": each.kind.value} for each in report.findings]
    return {
        "pool": str(path),
        "clean": report.clean,
        "whole": found.whole,
        "counts_compared": report.counts_compared,
        "held_root": found.held_root or None,
        "devices": report.device_count,
        "held_devices": report.held_device_count,
        "totals": {each.value: report.of(each) for each in Severity},
        "findings": findings,
    }


def _show_check(path: Path, found: PoolCheck) -> None:
    from replicator.pool.metadata_device import NAMES
    from replicator.pool.mirror_choice import mend_by_hand
    from replicator.thin.report import FindingKind, Severity

    report = found.report
    for finding in report.findings:
        click.echo(finding)
    unlisted = sum(map(report.of, Severity)) - len(report.findings)
    if unlisted > 0:
        click.echo(f"and {unlisted} more of the same kinds")
    if not found.whole:
        click.echo(
            "the pool is in use: its mappings were checked, its reference counts were not; stop its owner for that"
        )
    if found.held_root and found.whole:
        click.echo(f"metadata block {found.held_root} holds a metadata snapshot of {report.held_device_count} devices")
    damage, leaks = report.of(Severity.DAMAGE), report.of(Severity.LEAK)
    count = report.device_count or report.held_device_count
    if report.clean:
        click.echo(f"{path}: clean, {count} thin device{'' if count == 1 else 's'}")
    else:
        click.echo(f"{path}: {damage} damaged, {leaks} leaked")
    bad, differing = (
        report.totals.get((Severity.DAMAGE, kind), 0) for kind in (FindingKind.MIRROR, FindingKind.MIRROR_DIFFERS)
    )
    if differing and damage == bad + differing:
        by_hand = mend_by_hand(*(str(path / name) for name in NAMES.values()))
        click.echo(f"mend: one copy lacks a write, and only you may know which; {by_hand}")
    elif damage and damage == bad:
        click.echo(f"mend: replicator pool mirror {path} --compare heals each copy from the other")
    elif damage:
        click.echo(f"mend: replicator pool repair {path} --dry-run says what can be saved, with --to FILE it is")
