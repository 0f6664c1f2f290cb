"""`replicator restore`: a volume as of a restore point, to a file, a block device or stdout.

Over repository/restore, which has the guards and the crash table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.point_notes import from_pool_option, warn
from replicator.cli.show import json_option, local_zone, print_facts, print_json, progress, size_text
from replicator.errors import UsageError

if TYPE_CHECKING:
    from replicator.repository.restore import RestorePlan, RestoreReport
    from replicator.repository.source import Source


@click.command()
@click.argument("source", metavar="POOL|LOG")
@click.argument("point", metavar="VOLUME@POINT")
@click.option("--to", required=True, metavar="FILE|DEVICE|-", help="Where to; `-` is stdout.")
@click.option("--overwrite", is_flag=True, help="Replace what is there: a file, or what a device holds.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what speaks against it; write nothing.")
@click.option(
    "--accept-gap", is_flag=True, help="Take the newest point for a time beyond what is known to be complete."
)
@from_pool_option
@json_option
def restore(
    source: str, point: str, to: str, overwrite: bool, dry_run: bool, accept_gap: bool, from_pool: bool, as_json: bool
) -> int | None:
    """Restore a volume as of a point: by number, label, time, `-5m` or `latest`.

    \b
    replicator restore /srv/replica vm1@-5m --to /srv/vm1.img
    replicator restore /srv/replica vm1@2026-11-22T14:05 --to /dev/vg/vm1 --dry-run
    replicator restore /mnt/log vm1@before-upgrade --to - | zstd > vm1.zst

    A target that is mounted, in use, too small or (without --overwrite) not empty is refused (exit 4) before anything
    is written. A file appears under its name when it is whole. What was written to it, or to a device, is read back.

    Where a pool and its log tell two histories, since the log was replaced by an older copy, points that the two
    disagree about are refused (exit 4). Then choose: name LOG to take the log's, or --from-pool to take the pool's.
    """
    import time

    from replicator.repository.restore import plan_restore
    from replicator.repository.restore import restore as carry_out
    from replicator.repository.source import open_source

    if to == "-" and as_json and not dry_run:
        raise UsageError("the disk and a JSON document can't both go to stdout", mend="restore to a file")
    if to == "-" and not dry_run and sys.stdout.isatty():
        raise UsageError("stdout is a terminal: a disk's bytes would only spoil it", mend="pipe or redirect it")
    zone = local_zone()
    with open_source(source, alone=from_pool) as opened_source:
        opened = opened_source.open_point(point, now_ns=time.time_ns(), accept_gap=accept_gap, zone=zone)
        if not as_json:
            warn(opened_source.offer(opened.volume), zone, opened.point)
        with opened.disk:
            plan = plan_restore(opened, to, overwrite=overwrite, own=opened_source.places)
            document = _document(plan, opened_source)
            if dry_run:
                _show_plan(plan, document, as_json)
                plan.target.require_allowed()
                return None
            plan.target.require_allowed()
            if not as_json:
                click.echo(f"restoring {_what(plan)}", err=True)
            with progress(f"{opened.volume.name} {opened.point.describe(zone)}", opened.disk.size_bytes) as done:
                report = carry_out(plan, done)
    _tell(plan, report, document if as_json else None)
    return None


def _what(plan: RestorePlan) -> str:

    point = plan.opened.point
    zone = local_zone()
    return f"{plan.opened.volume.name} {point.describe(zone)}"


def _document(plan: RestorePlan, source: Source) -> dict[str, Any]:
    from replicator.cli.point_documents import complete_document, notes_document, point_document

    layers, point = plan.opened.disk.layers, plan.opened.point
    offer = source.offer(plan.opened.volume)
    return {
        "volume": plan.opened.volume.name,
        "uuid": str(plan.opened.volume.uuid),
        "point": point_document(plan.opened.volume, point, source.group_of(offer, point), offer.history_of(point)),
        **notes_document(offer),
        **complete_document(plan.opened.complete_to_ns),
        "base": plan.base,
        "transactions": layers.transaction_count,
        "log_bytes": layers.stored_bytes,
        "size_bytes": plan.opened.disk.size_bytes,
        "target": str(plan.target.path),
        "target_kind": plan.target.kind.value,
        "target_size_bytes": plan.target.size_bytes,
        "resumes_at_bytes": plan.resumes_at,
        "refused": list(plan.target.refusals),
    }


def _show_plan(plan: RestorePlan, document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    layers = plan.opened.disk.layers
    facts = {
        "point": _what(plan),
        "size": size_text(plan.opened.disk.size_bytes),
        "base": plan.base,
        "over it": f"{layers.transaction_count} transactions from the log, {size_text(layers.stored_bytes)}",
        "to": f"{plan.target.path} ({plan.target.kind.value})",
    }
    if plan.resumes_at:
        facts["goes on at"] = size_text(plan.resumes_at)
    if plan.target.refusals:
        facts["refused"] = "; ".join(plan.target.refusals)
    print_facts(facts)


def _tell(plan: RestorePlan, report: RestoreReport, document: dict[str, Any] | None) -> None:
    if document is not None:
        done = {
            "written_bytes": report.written_bytes,
            "resumed_at_bytes": report.resumed_at_bytes,
            "verified": report.verified,
        }
        print_json({**document, **done})
        return
    read_back = ", read back and equal" if report.verified else ""
    where = "stdout" if str(plan.target.path) == "-" else plan.target.path
    click.echo(f"restored to {where}: {size_text(report.written_bytes)} written{read_back}", err=True)
