"""`replicator log archive`: a log's events into another log for good, once or as a daemon. Over repository/archive."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import click

from replicator.cli.show import DURATION, json_option, print_json, print_table
from replicator.errors import DamageError, ReplicatorError, UsageError

if TYPE_CHECKING:
    from uuid import UUID

    from replicator.exporter.journal import Journal
    from replicator.repository.archive import Copied

EVERY_MIN_S = 0.05
"""As often as the shortest interval of cuts; without a pause it would do nothing but look."""


@click.command("archive")
@click.argument("url", metavar="LOG")
@click.argument("target", metavar="TO")
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@click.option("--follow", is_flag=True, help="Go on until stopped: a daemon.")
@click.option("--every", type=DURATION, default="1s", help="With --follow, how often to look (1s).")
@click.option("--name", default="archive", metavar="NAME", help="Registered as that beside LOG: trimming waits for it.")
@click.option("--no-register", is_flag=True, help="Don't register beside LOG.")
@json_option
def archive_log(
    url: str,
    target: str,
    volumes: tuple[str, ...],
    follow: bool,
    every: float,
    name: str,
    no_register: bool,
    as_json: bool,
) -> None:
    """Copy a log's events into another log, for good.

    TO is made where nothing is; a copy that was interrupted goes on where it left off.

    \b
    replicator log archive kafka://broker:9092/site-a /srv/archive
    replicator log archive kafka://broker:9092/site-a s3://backups/site-a --follow
    """
    from replicator.exporter.journal import Journal, notify_systemd
    from replicator.exporter.signals import stopped_by_signals
    from replicator.log.opening import open_log
    from replicator.repository.archive import Archiver
    from replicator.repository.archive_identity import archive_place, archive_uuid
    from replicator.repository.archive_registration import ArchiveRegistration
    from replicator.repository.patience import StopWaiter

    if every < EVERY_MIN_S:
        raise UsageError(f"looking every {every:g} s is too often", mend=f"take {EVERY_MIN_S:g}s or more: --every 1s")
    here = socket.gethostname()
    if archive_place(url, here) == archive_place(target, here):
        raise UsageError(f"{target} is the log itself", mend="name another directory, bucket or broker to copy to")
    waiter = StopWaiter()
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_log(url)))
        made = stack.enter_context(closing(open_log(target, create=True)))
        registration = ArchiveRegistration(source, archive_uuid(target, here), name, waiter, time.time_ns)
        archiver = stack.enter_context(
            Archiver(source, made, waiter, None if no_register else registration, volumes, waiter.is_stopping, _beat)
        )
        if not follow:
            _tell(url, target, archiver.round(), as_json)
            return
        stack.enter_context(stopped_by_signals(waiter.stop))
        journal = Journal(sys.stderr, time.time_ns)
        journal.info("archive started", source=url, target=target)
        notify_systemd("READY=1")
        archiver.follow(every, _Told(journal))


def _beat() -> None:
    """Feed systemd's watchdog."""
    from replicator.exporter.journal import notify_systemd

    notify_systemd("WATCHDOG=1")


class _Told:
    """Tells the journal what came, and each trouble once."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._troubles: dict[tuple[UUID, int], str] = {}
        self._refusals: dict[UUID, str] = {}
        self._trouble = ""

    def __call__(self, copied: list[Copied], trouble: ReplicatorError | None) -> None:
        _beat()
        if trouble is not None and trouble.message != self._trouble:
            event = "log damaged" if isinstance(trouble, DamageError) else "log unreachable"
            self._journal.warning(event, reason=trouble.message, mend=trouble.mend)
        self._trouble = trouble.message if trouble is not None else ""
        for each in copied:
            key = (each.volume, each.timeline)
            if each.error is None:
                self._troubles.pop(key, None)
            elif self._troubles.get(key) != each.error.message:
                self._troubles[key] = each.error.message
                mend = each.error.mend
                self._journal.warning("not archived", volume=each.name, reason=each.error.message, mend=mend)
            self._tell_refusal(each)
            if each.event_count:
                self._journal.info("archived", volume=each.name, events=each.event_count, number=each.number)

    def _tell_refusal(self, copied: Copied) -> None:
        refusal = copied.unregistered
        if refusal is None:
            self._refusals.pop(copied.volume, None)
        elif self._refusals.get(copied.volume) != refusal.message:
            self._refusals[copied.volume] = refusal.message
            self._journal.warning("not registered", volume=copied.name, reason=refusal.message, mend=refusal.mend)


def _tell(url: str, target: str, copied: list[Copied], as_json: bool) -> None:
    """What one round did; raises the first stream's error at the end."""
    if as_json:
        documents = [
            {
                "volume": each.name,
                "uuid": str(each.volume),
                "timeline": each.timeline,
                "events": each.event_count,
                "number": each.number,
                "sequence": each.sequence,
                "error": each.error.message if each.error else None,
                "unregistered": each.unregistered.message if each.unregistered else None,
            }
            for each in copied
        ]
        print_json({"from": url, "to": target, "streams": documents})
    else:
        rows = [(each.name, each.timeline, each.event_count, each.number, each.sequence) for each in copied]
        print_table(("VOLUME", "TIMELINE", "COPIED", "POINT", "EVENTS"), rows)
        _tell_refused(url, target, [each.unregistered for each in copied if each.unregistered is not None])
    failed = next((each.error for each in copied if each.error is not None), None)
    if failed is not None:
        raise failed


def _tell_refused(url: str, target: str, refusals: list[ReplicatorError]) -> None:
    if refusals:
        reason, mend = refusals[0].message, refusals[0].mend or "let it be written to"
        click.echo(f"not registered beside {url}, so trimming may not wait for {target}: {reason}", err=True)
        click.echo(f"  {mend}; or take --no-register if that is meant", err=True)
