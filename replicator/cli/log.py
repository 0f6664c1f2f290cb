"""`replicator log`: what a log holds: list its volumes, show a volume's events, verify every byte; archive, serve.

Over log/opening and repository/verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from replicator.cli.log_archive import archive_log
from replicator.cli.log_serve import serve_log
from replicator.cli.show import json_option, print_json, print_json_array, print_table, size_text
from replicator.errors import DamageError, FormatError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replicator.events.codec import Event
    from replicator.history.resolve import NamedVolume
    from replicator.log.interface import Log, StreamReader, VolumeEntry
    from replicator.repository.verify import Verified


@click.group()
def log() -> None:
    """List, show, verify, copy and serve what a log holds.

    LOG is a directory, ssh://HOST/PATH, s3://BUCKET/PREFIX, or kafka://HOST:PORT/PREFIX.

    \b
    replicator log list /mnt/log
    replicator log verify /mnt/log
    """


log.add_command(serve_log)
log.add_command(archive_log)


@log.command("list")
@click.argument("url", metavar="LOG")
@json_option
def list_log(url: str, as_json: bool) -> None:
    """List the volumes of a log: who publishes them, how far.

    \b
    replicator log list /mnt/log --json
    """
    from replicator.log.opening import open_log

    opened = open_log(url)
    try:
        documents = [_volume_document(opened, entry) for entry in opened.volumes()]
    finally:
        opened.close()
    if as_json:
        print_json(documents)
        return
    rows = [
        (
            d["volume"],
            d["host"],
            size_text(d["size_bytes"]),
            d["timeline"],
            d["number"],
            d["sequence"],
            d["alive_at"] or "",
            _receivers_text(d["receivers"]),
        )
        for d in documents
    ]
    print_table(("VOLUME", "HOST", "SIZE", "TIMELINE", "POINT", "EVENTS", "ALIVE AT", "RECEIVERS"), rows)


def _volume_document(opened: Log, entry: Any) -> dict[str, Any]:
    from replicator.events.state import Life

    timelines = opened.timelines(entry.volume)
    state = opened.reader(entry.volume, entry.timeline).tail()
    try:
        beacon = opened.read_beacon(entry.volume)
    except FormatError:
        beacon = None
    return {
        "volume": entry.name,
        "uuid": str(entry.volume),
        "host": entry.host,
        "size_bytes": state.size_bytes,
        "timeline": entry.timeline,
        "timelines": timelines,
        "number": state.committed.number if state.committed else 0,
        "sequence": state.sequence,
        "epoch": state.epoch,
        "open_number": state.open.number if state.open else None,
        "deleted": state.life is Life.DELETED,
        "timestamp": _iso(state.timestamp_ns),
        "alive_at": _iso(beacon.alive_at_ns) if beacon else None,
        "receivers": _receivers(opened, entry),
    }


def _receivers_text(receivers: list[dict[str, Any]] | None) -> str:
    return "?" if receivers is None else ", ".join(f"{each['name']}@{each['number']}" for each in receivers)


def _receivers(opened: Log, entry: VolumeEntry) -> list[dict[str, Any]] | None:
    """Who registered; None, and a word on stderr, where one of them can't be read: it hides no volume."""
    try:
        known = opened.registrations(entry.volume)
    except FormatError as error:
        click.echo(f"{entry.name}: who receives it can't be told: {error.message}; {error.mend}", err=True)
        return None
    return [
        {"name": each.name, "uuid": str(each.receiver), "number": each.number, "at": _iso(each.at_ns)} for each in known
    ]


def _iso(timestamp_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).isoformat()


@log.command("show")
@click.argument("url", metavar="LOG")
@click.argument("volume")
@click.option("--timeline", type=click.IntRange(min=1), metavar="N", help="That timeline's (the newest's).")
@click.option("--from", "begin", type=click.IntRange(min=1), metavar="N", default=1, help="From that event on.")
@json_option
def show_log(url: str, volume: str, timeline: int | None, begin: int, as_json: bool) -> None:
    """Show a volume's events, oldest first, without their data.

    \b
    replicator log show /mnt/log vm1
    replicator log show /mnt/log vm1 --from 1000 --json
    """
    from replicator.cli.log_events import event_document, event_text
    from replicator.log.opening import open_log
    from replicator.repository.source import Source

    with Source(url, log=open_log(url)) as source:
        assert source.log is not None
        found = source.volume(volume)
        number = _timeline(source.log, found, timeline)
        events = _events(source.log.reader(found.uuid, number), f"timeline {number} of {found.name}", begin)
        if as_json:
            print_json_array(map(event_document, events))
            return
        shown = False
        for event in events:
            header, shown = event.header, True
            click.echo(f"{number}:{header.sequence:<8} {type(event.body).__name__:<21} {event_text(event)}")
        if not shown:
            click.echo(f"timeline {number} of {found.name} has no event {begin} yet", err=True)


def _events(reader: StreamReader, name: str, begin: int) -> Iterator[Event]:
    """Those from `begin` on that are kept; NotFoundError behind the next one to come."""
    from replicator.log.errors import LostEndError

    try:
        yield from reader.read(max(begin, reader.start().sequence + 1))
    except LostEndError as error:
        raise NotFoundError(f"{name} has no event {begin}: the last one is {error.end}") from error


def _timeline(log: Log, volume: NamedVolume, asked: int | None) -> int:
    """The timeline that is meant, the newest by default; NotFoundError for one that isn't there."""
    there = log.timelines(volume.uuid)
    if asked is not None and asked not in there:
        known = ", ".join(map(str, there)) or "none"
        raise NotFoundError(
            f"{volume.name} has no timeline {asked}; there are: {known}",
            mend=f"--timeline {there[-1]}" if there else None,
        )
    return asked or max(there, default=1)


@log.command("verify")
@click.argument("url", metavar="LOG")
@click.argument("volume", required=False)
@json_option
def verify_log(url: str, volume: str | None, as_json: bool) -> None:
    """Read and verify every event: checksums, chain, indexes.

    Exit 3 names what is damaged.

    \b
    replicator log verify /mnt/log
    replicator log verify /mnt/log vm1 --json
    """
    from replicator.log.opening import open_log
    from replicator.repository.source import Source
    from replicator.repository.verify import verify_volume

    with Source(url, log=open_log(url)) as source:
        assert source.log is not None
        volumes = [source.volume(volume)] if volume else source.volumes()
        found = [(each.name, verify_volume(source.log, each.uuid)) for each in volumes]
    damaged = sum(len(verified.findings) for _, verified in found)
    if as_json:
        print_json({"damaged": damaged, "volumes": [_verified_document(name, verified) for name, verified in found]})
    else:
        for name, verified in found:
            _print_verified(name, verified)
    if damaged:
        raise DamageError(f"{url}: {damaged} findings", mend="put what is damaged back from another copy of the log")


def _verified_document(name: str, verified: Verified) -> dict[str, Any]:
    return {
        "volume": name,
        "uuid": str(verified.volume),
        "events": verified.event_count,
        "parts": verified.part_count,
        "transactions": verified.transaction_count,
        "stored_bytes": verified.stored_bytes,
        "skipped": verified.skipped_count,
        "findings": [
            {"timeline": each.timeline, "sequence": each.sequence, "message": each.message}
            for each in verified.findings
        ],
    }


def _print_verified(name: str, verified: Verified) -> None:
    word = f"{len(verified.findings)} findings" if verified.findings else "clean"
    click.echo(
        f"{name}: {word}: {verified.transaction_count} transactions, {verified.event_count} events in"
        f" {verified.part_count} parts, {size_text(verified.stored_bytes)}"
    )
    for each in verified.findings:
        click.echo(f"  timeline {each.timeline}, from event {each.sequence}: {each.message}")
