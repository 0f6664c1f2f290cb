"""`replicator points`: the restore points of a pool or a log: list, show, create, label.

Over repository/source, which reads both. A cut or a label goes through the running agent where there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import POOL
from replicator.cli.point_documents import complete_document, notes_document, point_document
from replicator.cli.point_notes import accept_gap_option, from_pool_option, raise_worst, tell_short, warn
from replicator.cli.show import DURATION, json_option, local_zone, print_facts, print_json, print_table, size_text
from replicator.errors import ConflictError, DamageError, NotFoundError, UnavailableError, UsageError

if TYPE_CHECKING:
    from datetime import tzinfo

    from replicator.history.points import RestorePoint
    from replicator.history.resolve import NamedVolume
    from replicator.repository.offer import Offer
    from replicator.repository.source import Source

SHOWN = 60
"""Points that people see at the end of a list, besides those that are labelled or materialised."""

_ALWAYS = 6  # columns; the others stand where there is something to show

WAIT_S = 300.0
"""How long an agent may take: a cut waits for its turn behind the delta that is being published."""


@click.group()
def points() -> None:
    """Restore points: list, show, create, label.

    \b
    replicator points list /srv/replica vm1
    replicator points create /srv/pool vm1 --label before-upgrade --wait
    """


@points.command("list")
@click.argument("source", metavar="POOL|LOG")
@click.argument("volume", required=False)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help=f"Every point; otherwise the last {SHOWN}, the labelled, and those kept as snapshots.",
)
@click.option("--since", metavar="TIME", help="Points from then on: a time, or an age such as -1h.")
@from_pool_option
@json_option
def list_points(
    source: str, volume: str | None, everything: bool, since: str | None, from_pool: bool, as_json: bool
) -> None:
    """List the restore points that can be had, oldest first.

    \b
    replicator points list /srv/replica
    replicator points list /srv/replica vm1 --since -1h --json
    """
    from replicator.repository.source import open_source

    zone = local_zone()
    since_ns = _instant(since, zone) if since else 0
    with open_source(source, alone=from_pool) as opened:
        volumes = [opened.volume(volume)] if volume else opened.volumes()
        offers = [opened.offer(each) for each in volumes]
        if as_json:
            _print_points(opened, offers, since_ns)
        else:
            _print_offers(opened, offers, since_ns, everything, zone)
    tell_short(offers, zone)
    raise_worst(offers, zone)


def _print_points(source: Source, offers: list[Offer], since_ns: int) -> None:
    found = [(offer, each) for offer in offers for each in offer.points if each.timestamp_ns >= since_ns]
    print_json(
        [
            point_document(offer.volume, each, source.group_of(offer, each), offer.history_of(each))
            for offer, each in found
        ]
    )


def _print_offers(source: Source, offers: list[Offer], since_ns: int, everything: bool, zone: tzinfo) -> None:
    """One table of all volumes, and what is to be said of each behind it."""
    import time

    from replicator.history.points import format_instant
    from replicator.history.resolve import ahead_note

    rows, said = [], []
    for offer in offers:
        found = [each for each in offer.points if each.timestamp_ns >= since_ns]
        last = {id(each) for each in found[-SHOWN:]}
        shown = [each for each in found if everything or each.labels or each.materialised or id(each) in last]
        rows += [_cells(source, offer, each, zone) for each in shown]
        if len(shown) < len(found):
            said.append(f"{offer.volume.name}: {len(found) - len(shown)} more: --all shows them")
        if offer.complete_to_ns is not None:
            whose = f"{offer.volume.name}, in its log," if offer.divided else offer.volume.name
            said.append(f"{whose} is complete to {format_instant(offer.complete_to_ns, zone)}")
        newest = found[-1] if found else None
        if newest and (note := ahead_note(offer.volume.name, newest.number, newest.timestamp_ns, time.time_ns())):
            said.append(note)
    header = ("VOLUME", "POINT", "OF", "CONSISTENCY", "FROM", "LABELS", "GROUP", "HISTORY")
    shown_columns = [i for i, _ in enumerate(header) if i < _ALWAYS or any(row[i] for row in rows)]
    print_table([header[i] for i in shown_columns], [[row[i] for i in shown_columns] for row in rows])
    for line in said:
        click.echo(line)


def _cells(source: Source, offer: Offer, point: RestorePoint, zone: tzinfo) -> tuple[str, ...]:
    from replicator.history.points import format_instant

    group = source.group_of(offer, point)
    return (
        offer.volume.name,
        point.place,
        format_instant(point.timestamp_ns, zone),
        point.consistency.value,
        "snapshot" if point.materialised else "volume" if offer.is_head(point) else "log",
        ", ".join(point.labels),
        "" if group is None else group.describe(),
        offer.history_of(point) or "",
    )


@points.command("show")
@click.argument("source", metavar="POOL|LOG")
@click.argument("point", metavar="VOLUME@POINT")
@accept_gap_option
@from_pool_option
@json_option
def show_point(source: str, point: str, accept_gap: bool, from_pool: bool, as_json: bool) -> None:
    """Show one point: what it is, and how it would be had.

    \b
    replicator points show /srv/replica vm1@-5m
    """
    import time

    from replicator.history.points import format_instant
    from replicator.repository.source import open_source

    zone = local_zone()
    with open_source(source, alone=from_pool) as opened:
        found = opened.open_point(point, now_ns=time.time_ns(), accept_gap=accept_gap, zone=zone)
        with found.disk as disk:
            offer = opened.offer(found.volume)
            group = opened.group_of(offer, found.point)
            document = {
                **point_document(found.volume, found.point, group, offer.history_of(found.point)),
                **notes_document(offer),
                **complete_document(found.complete_to_ns),
                "base": str(found.plan.base.revision),
                "transactions": disk.layers.transaction_count,
                "log_bytes": disk.layers.stored_bytes,
            }
    if as_json:
        print_json(document)
        return
    warn(offer, zone, found.point)
    each = found.point
    told = {} if group is None else {"group": group.describe()}
    print_facts(
        {
            "volume": f"{found.volume.name} ({found.volume.uuid})",
            "point": f"{each.timeline}:{each.number}",
            "of": format_instant(each.timestamp_ns, zone),
            "size": size_text(each.size_bytes),
            "consistency": each.consistency.value,
            "labels": ", ".join(each.labels) or "none",
            "digest": each.digest.hex(),
            "had from": _had_from(offer, each, document),
            **told,
        }
    )


def _had_from(offer: Offer, point: RestorePoint, document: dict[str, Any]) -> str:
    if point.materialised:
        return "a snapshot"
    if offer.is_head(point):
        return "the volume itself"
    log = f"{document['transactions']} transactions of the log ({size_text(int(document['log_bytes']))})"
    return f"@{document['base']} and {log}"


@points.command("create")
@click.argument("pool", type=POOL)
@click.argument("volume")
@click.option("--label", required=True, metavar="LABEL", help="The point's label.")
@click.option("--wait", is_flag=True, help="Wait until every registered receiver has it.")
@click.option("--timeout", type=DURATION, default="5m", help="How long to wait for them (5m).")
@json_option
def create_point(pool: Path, volume: str, label: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Make a cut now, under a label to restore it by.

    The agent that runs publishes it; where none runs, the next one does. A label names one point of a volume: one that
    is taken is refused (exit 4).

    \b
    replicator points create /srv/pool vm1 --label before-upgrade --wait
    """
    from replicator.history.names import check_label
    from replicator.repository.taken import refuse_taken

    check_label(label)
    refuse_taken(pool, volume, label, local_zone())
    answer = _ask_agent(pool, volume, label)
    if answer is None:
        if wait:
            mend = "start one: replicator agent run; or leave --wait out: the next agent publishes the cut"
            raise ConflictError("no agent runs on this pool: nobody would publish the cut", mend=mend)
        answer = _cut_here(pool, volume, label)
    if wait:
        answer["receivers"] = _await_receivers(pool, answer, timeout)
    if as_json:
        print_json(answer)
    elif answer["published"]:
        click.echo(
            f"point {answer['number']} of {answer['volume']}, labelled {label!r}, is in the log{_had_by(answer)}"
        )
    else:
        click.echo(f"{answer['volume']} was cut, labelled {label!r}; no agent runs: the next one publishes it")


def _await_receivers(pool: Path, answer: dict[str, Any], timeout_s: float) -> list[str]:
    """Wait for the receivers that are registered beside the pool's log; their names."""
    from contextlib import closing

    from replicator.log.opening import open_log
    from replicator.pool.reading import read_pool
    from replicator.repository.patience import StopWaiter
    from replicator.repository.receipts import await_receivers
    from replicator.repository.remembered import remembered_log

    with read_pool(pool) as reader:
        view = reader.view()
    uuid = view.volume(answer["volume"]).uuid
    url = remembered_log(view, uuid)
    with closing(open_log(url)) as log:
        had = await_receivers(log, uuid, answer["timeline"], answer["number"], StopWaiter(), timeout_s)
    return [each.name for each in had]


def _had_by(answer: dict[str, Any]) -> str:
    """What is to be said of the receivers, where they were waited for."""
    if "receivers" not in answer:
        return ""
    names = ", ".join(answer["receivers"])
    return f", and at {names}" if names else "; no receiver is registered there"


def _ask_agent(pool: Path, volume: str, label: str) -> dict[str, Any] | None:
    """The point that the agent of the pool made, in the log already; None where none runs."""
    from replicator.pool.daemons import ask
    from replicator.pool.sockets import connect

    try:
        connect(pool, "agent", 1.0).close()
    except (UnavailableError, OSError):
        return None
    answer = ask(pool, "agent", "snapshot", WAIT_S, volumes=[volume], labels=[label])
    made = [each for each in answer.get("points", ()) if isinstance(each, dict)]
    if not made:
        raise NotFoundError("the agent made no point of it", mend="replicator agent status says why")
    own = [each for each in made if volume in (each.get("volume"), each.get("uuid"))]
    return {**(own or made)[0], "label": label, "published": True}


def _cut_here(pool: Path, volume: str, label: str) -> dict[str, Any]:
    """The cut of a pool that no agent works on, for the next one to publish."""
    from uuid import uuid4

    from replicator.pool.opening import open_pool
    from replicator.repository.labelling import cut_labelled

    opened = open_pool(pool)
    try:
        row, made = cut_labelled(opened, volume, label, uuid4(), uuid4())
    finally:
        opened.close()
    return {"volume": row.name, "label": label, "timestamp_ns": made.timestamp_ns, "published": False}


@points.command("label")
@click.argument("pool", type=POOL)
@click.argument("point", metavar="VOLUME@POINT")
@click.argument("label")
@json_option
def label_point(pool: Path, point: str, label: str, as_json: bool) -> None:
    """Give a point one label more.

    In a source's pool its agent, which has to run, writes the label to the log, for every receiver; in a replica's pool
    it is known to that pool alone. A label names one point of a volume: one that is taken is refused (exit 4).

    \b
    replicator points label /srv/replica vm1@1041 friday
    """
    import time
    from dataclasses import replace

    from replicator.history.names import check_label
    from replicator.history.points import parse_specification
    from replicator.history.resolve import UnansweredTimeError, by_number
    from replicator.pool.catalogue_schema import Role
    from replicator.pool.opening import open_pool
    from replicator.repository import labelling
    from replicator.repository.source import open_source

    check_label(label)
    zone = local_zone()
    with open_source(str(pool)) as source:
        if source.pool is None:
            raise UsageError(f"{pool} is a log, and only appended to", mend="name a replica's pool")
        try:
            offer, found = source.find(parse_specification(point, zone), now_ns=time.time_ns(), zone=zone)
        except (UnansweredTimeError, DamageError) as error:
            error.mend = by_number(str(pool))
            raise
        taken = [each for each in offer.points if label in each.labels and each != found]
        if taken:
            raise ConflictError(f"{label!r} is the label of {taken[0].describe(zone)}", mend="choose another label")
        is_source = source.pool.view().position(offer.volume.uuid, Role.PUBLISHED) is not None
    if is_source:
        _label_in_log(pool, offer.volume, found, label)
    else:
        opened = open_pool(pool)
        try:
            labelling.label_point(opened, found, label)
        finally:
            opened.close()
    labelled = replace(found, labels=tuple(dict.fromkeys((*found.labels, label))))
    if as_json:
        print_json(point_document(offer.volume, labelled))
    else:
        click.echo(f"{offer.volume.name} {labelled.describe(zone)}")


def _label_in_log(pool: Path, volume: NamedVolume, point: RestorePoint, label: str) -> None:
    """Have the agent of a source's pool tell the log."""
    from replicator.pool.daemons import ask

    named = {"timeline": point.timeline, "number": point.number, "digest": point.digest.hex()}
    try:
        ask(pool, "agent", "label", WAIT_S, volume=str(volume.uuid), label=label, **named)
    except UnavailableError as error:
        mend = f"start it: replicator agent run {pool} --log LOG --listen ADDRESS"
        raise ConflictError("a source's points are labelled by its agent, and none runs", mend=mend) from error


def _instant(text: str, zone: tzinfo) -> int:
    """A time, or an age before now."""
    import time

    from replicator.history.points import ByAge, ByTime, parse_point

    wanted = parse_point(text, zone)
    if isinstance(wanted, ByTime):
        return wanted.first_ns
    if isinstance(wanted, ByAge):
        return time.time_ns() - wanted.age_ns
    raise UsageError(f"{text!r} is neither a time nor an age", mend="write --since 2026-11-22T14:00, or --since -1h")
