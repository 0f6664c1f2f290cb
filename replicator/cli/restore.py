"""`replicator restore`: a volume as of a restore point, to a file, a block device or stdout.

Over repository/restore, which has the guards and the crash table. People are told on stderr what goes on, a bar at a
time on a terminal; with --json there is nothing on stderr but an error's document.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.point_notes import accept_gap_option, from_pool_option, warn
from replicator.cli.show import json_option, local_zone, print_facts, print_json, progress, size_text
from replicator.errors import DamageError, ReplicatorError, UnavailableError, UsageError

if TYPE_CHECKING:
    from replicator.repository.restore import RestorePlan, RestoreReport
    from replicator.repository.source import Source


@click.command()
@click.argument("source", metavar="POOL|LOG")
@click.argument("point", metavar="VOLUME@POINT")
@click.option("--to", required=True, metavar="FILE|DEVICE|-", help="Where to; `-` is stdout.")
@click.option("--overwrite", is_flag=True, help="Replace what is there: a file, or what a device holds.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what speaks against it; write nothing.")
@accept_gap_option
@from_pool_option
@json_option
def restore(
    source: str, point: str, to: str, overwrite: bool, dry_run: bool, accept_gap: bool, from_pool: bool, as_json: bool
) -> int | None:
    """Restore a volume as of a point: by number, label, time, `-5m` or `latest`.

    A time means the latest point in that second or before it; without Z or an offset it is local time.

    \b
    replicator restore /srv/replica vm1@-5m --to /srv/vm1.img
    replicator restore /srv/replica vm1@2026-11-22T14:05 --to /dev/vg/vm1 --dry-run
    replicator restore /mnt/log vm1@before-upgrade --to - | zstd > vm1.zst

    A target that is mounted, in use, too small or (without --overwrite) not empty is refused (exit 4) before anything
    is written. A file appears under its name when it is whole. What was written to it, or to a device, is read back.

    One that ends early says which command goes on: the point by its number, since `latest` or `-5m` may mean a newer
    one by then.

    On a pool that nobody has open no receiver or agent can be started while a restore reads it. One that was started
    before goes on beside it.

    Where a pool and its log tell two histories, since the log was replaced by an older copy, points that the two
    disagree about are refused (exit 4). Then choose: name LOG to take the log's, or --from-pool to take the pool's.
    """
    import time

    from replicator.repository.restore import plan_restore
    from replicator.repository.source import open_source

    if to == "-" and not dry_run:
        _require_stdout(as_json)
    zone = local_zone()
    with open_source(source, alone=from_pool) as opened_source:
        if not as_json:
            _tell_start(opened_source, dry_run)
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
            again = partial(_again, plan, source, point, to, from_pool)
            report = _carried_out(plan, again, as_json)
    _tell(plan, report, document if as_json else None)
    return None


def _require_stdout(as_json: bool) -> None:
    """UsageError where a disk can't go to stdout."""
    if as_json:
        raise UsageError("the disk and a JSON document can't both go to stdout", mend="restore to a file")
    if sys.stdout.isatty():
        raise UsageError("stdout is a terminal: a disk's bytes would only spoil it", mend="pipe or redirect it")


def _carried_out(plan: RestorePlan, again: Callable[..., str], as_json: bool) -> RestoreReport:
    from replicator.repository.restore import restore as carry_out

    if not as_json:
        _tell_plan(plan)
    with _told_how_it_goes_on(plan, again, as_json), _Bars(plan.opened.disk.size_bytes) as bars:
        return carry_out(plan, bars.at(_what(plan)), reading_back=bars.at(f"reading back {plan.target.path}"))


class _Bars:
    """A bar at a time, that of the stage which told something last; a context manager."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._stage, self._bar = "", ExitStack()
        self._done: Callable[[int], None] = lambda _: None

    def at(self, stage: str) -> Callable[[int], None]:
        """What hears how far this stage is."""

        def tell(done_bytes: int) -> None:
            if stage != self._stage:
                self._bar.close()
                self._stage, self._done = stage, self._bar.enter_context(progress(stage, self._total_bytes))
            self._done(done_bytes)

        return tell

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _tell_start(source: Source, dry_run: bool) -> None:
    """Before the point is looked for, which may take minutes."""
    if not dry_run and source.pool is not None and _bars_owners(Path(source.name)):
        click.echo(
            f"nobody has {source.name} open: no receiver or agent can be started on it until this has ended"
            " (started before, it goes on beside a restore)",
            err=True,
        )
    if source.log is not None or source.remembered:
        click.echo("reading the log ...", err=True)


def _bars_owners(pool: Path) -> bool:
    """Whether the pool is read under its lock, which keeps owners out (pool/locks), and not beside its owner."""
    from replicator.pool.control_connection import SOCKET_NAME
    from replicator.pool.ending import Listening

    if not (pool / "catalog.db").exists():
        return False  # nobody of ours works on a foreign one
    try:
        with Listening(pool, SOCKET_NAME):
            return False
    except UnavailableError:
        return True


def _tell_plan(plan: RestorePlan) -> None:
    click.echo(f"restoring {_what(plan)}", err=True)
    if plan.unfinished:
        click.echo(f"an unfinished restore of {plan.unfinished} to the same target is given up", err=True)


def _again(plan: RestorePlan, source: str, point: str, to: str, from_pool: bool, *, overwrite: bool) -> str:
    """The command that goes on, whatever `latest` means by then; empty where a terminal can't show its names."""
    found = plan.opened.point
    exact = f"{point.partition('@')[0]}@{found.timeline}:{found.number}"
    flags = [*(["--overwrite"] if overwrite else []), *(["--from-pool"] if from_pool else [])]
    options, named = ["--to", to, *flags], [source, exact]
    words = [*options, "--", *named] if source.startswith("-") else [*named, *options]
    command = shlex.join(["replicator", "restore", *words])
    return command if command.isprintable() else ""


@contextmanager
def _told_how_it_goes_on(plan: RestorePlan, again: Callable[..., str], as_json: bool) -> Iterator[None]:
    """Whatever ends the block early, and leaves something to go on with, says by which command."""
    from replicator.repository.readback import ChangedSinceError, NotAsWrittenError
    from replicator.repository.restore import goes_on

    try:
        yield
    except BaseException as error:
        own = isinstance(error, ChangedSinceError | NotAsWrittenError)
        command = again(overwrite=plan.overwrite or own)
        is_the_points = isinstance(error, DamageError) and not own  # it would be met once more
        if command and not is_the_points and goes_on(plan):
            words = f"it goes on with: {command}"
            if isinstance(error, ReplicatorError):
                error.mend = f"{error.mend}; {words}" if error.mend else words
            elif not as_json:
                click.echo(words, err=True)
        raise


def _what(plan: RestorePlan) -> str:
    return f"{plan.opened.volume.name} {plan.opened.point.describe(local_zone())}"


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
        "gives_up": plan.unfinished or None,
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
    if plan.unfinished:
        facts["gives up"] = f"an unfinished restore of {plan.unfinished}"
    if plan.target.refusals:
        facts["refused"] = "; ".join(plan.target.refusals)
    print_facts(facts)


def _tell(plan: RestorePlan, report: RestoreReport, document: dict[str, Any] | None) -> None:
    if document is not None:
        done = {
            "written_bytes": report.written_bytes,
            "resumed_at_bytes": report.resumed_at_bytes,
            "verified": report.verified,
            "rewritten_bytes": report.rewritten_bytes,
        }
        print_json({**document, **done})
        return
    read_back = ", read back and equal" if report.verified else ""
    if report.rewritten_bytes:
        read_back += (
            f"; {size_text(report.rewritten_bytes)} had changed since an earlier run, and was written once more"
        )
    where = "stdout" if str(plan.target.path) == "-" else plan.target.path
    click.echo(f"restored to {where}: {size_text(report.written_bytes)} written{read_back}", err=True)
