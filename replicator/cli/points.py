"""`replicator points`: the restore points of a pool or a log: list, show, create, label.

Over repository/source, which reads both. A cut or a label goes through the running agent where there is one.

JSON of a point: {"volume", "uuid", "number", "timeline", "timestamp", "timestamp_ns", "consistency", "labels",
"materialised", "size_bytes", "digest", "held"}; `timestamp` is ISO 8601, universal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import POOL
from replicator.cli.show import json_option, local_zone, print_facts, print_json, print_table, size_text
from replicator.errors import ConflictError, NotFoundError, UnavailableError, UsageError

if TYPE_CHECKING:
    from datetime import tzinfo

    from replicator.history.points import RestorePoint
    from replicator.history.resolve import NamedVolume
    from replicator.repository.source import Offer

SHOWN = 60
"""Points that people see at the end of a list, besides those that are labelled or materialised."""

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
    "--all", "everything", is_flag=True, help=f"Every point, not only the last {SHOWN}, labelled, materialised."
)
@click.option("--since", metavar="TIME", help="Points from then on: a time, or an age such as -1h.")
@json_option
def list_points(source: str, volume: str | None, everything: bool, since: str | None, as_json: bool) -> None:
    """The restore points that can be had, oldest first.

    \b
    replicator points list /srv/replica
    replicator points list /srv/replica vm1 --since -1h --json
    """
    from replicator.repository.source import open_source

    zone = local_zone()
    since_ns = _instant(since, zone) if since else 0
    with open_source(source) as opened:
        volumes = [opened.volume(volume)] if volume else opened.volumes()
        offers = [opened.offer(each) for each in volumes]
    if as_json:
        print_json([point_document(o.volume, p) for o in offers for p in o.points if p.timestamp_ns >= since_ns])
        return
    for offer in offers:
        _print_offer(offer, since_ns, everything, zone)


def _print_offer(offer: Offer, since_ns: int, everything: bool, zone: tzinfo) -> None:
    from replicator.history.points import format_instant

    found = [each for each in offer.points if each.timestamp_ns >= since_ns]
    last = {id(each) for each in found[-SHOWN:]}
    shown = [each for each in found if everything or each.labels or each.materialised or id(each) in last]
    rows = [
        (
            offer.volume.name,
            f"{each.timeline}:{each.number}" if each.timeline > 1 else str(each.number),
            format_instant(each.timestamp_ns, zone),
            each.consistency.value,
            "snapshot" if each.materialised else "log",
            ", ".join(each.labels),
        )
        for each in shown
    ]
    print_table(("VOLUME", "POINT", "OF", "CONSISTENCY", "FROM", "LABELS"), rows)
    if len(shown) < len(found):
        click.echo(f"{len(found) - len(shown)} more: --all shows them")
    if offer.complete_to_ns is not None:
        click.echo(f"{offer.volume.name} is complete to {format_instant(offer.complete_to_ns, zone)}")
    if offer.problem is not None:
        click.echo(f"only snapshots are listed: {offer.problem.message}", err=True)


@points.command("show")
@click.argument("source", metavar="POOL|LOG")
@click.argument("point", metavar="VOLUME@POINT")
@click.option(
    "--accept-gap", is_flag=True, help="Take the newest point for a time beyond what is known to be complete."
)
@json_option
def show_point(source: str, point: str, accept_gap: bool, as_json: bool) -> None:
    """One point: what it is, and how it would be had.

    \b
    replicator points show /srv/replica vm1@-5m
    """
    import time

    from replicator.history.points import format_instant
    from replicator.repository.source import open_source

    zone = local_zone()
    with open_source(source) as opened:
        found = opened.open_point(point, now_ns=time.time_ns(), accept_gap=accept_gap, zone=zone)
        with found.disk as disk:
            document = {
                **point_document(found.volume, found.point),
                "complete_to": found.complete_to_ns,
                "base": str(found.plan.base.revision),
                "transactions": disk.layers.transaction_count,
                "log_bytes": disk.layers.stored_bytes,
            }
    if as_json:
        print_json(document)
        return
    each = found.point
    print_facts(
        {
            "volume": f"{found.volume.name} ({found.volume.uuid})",
            "point": f"{each.timeline}:{each.number}",
            "of": format_instant(each.timestamp_ns, zone),
            "size": size_text(each.size_bytes),
            "consistency": each.consistency.value,
            "labels": ", ".join(each.labels) or "none",
            "digest": each.digest.hex(),
            "had from": "a snapshot"
            if each.materialised
            else f"@{document['base']} and {document['transactions']}"
            f" transactions of the log ({size_text(int(document['log_bytes']))})",
        }
    )


@points.command("create")
@click.argument("pool", type=POOL)
@click.argument("volume")
@click.option("--label", required=True, help="Its label.")
@click.option("--wait", is_flag=True, help="Wait until it is in the log.")
@json_option
def create_point(pool: Path, volume: str, label: str, wait: bool, as_json: bool) -> None:
    """A cut now, with a label, published by the agent: by the one that runs, or by the next run.

    \b
    replicator points create /srv/pool vm1 --label before-upgrade --wait
    """
    from replicator.history.names import check_label

    check_label(label)
    answer = _ask_agent(pool, volume, label)
    if answer is None:
        if wait:
            mend = "start one: replicator agent run; or leave --wait out: the next agent publishes the cut"
            raise ConflictError("no agent runs on this pool: nobody would publish the cut", mend=mend)
        answer = _cut_here(pool, volume, label)
    if as_json:
        print_json(answer)
    elif answer["published"]:
        click.echo(f"point {answer['number']} of {answer['volume']}, labelled {label!r}, is in the log")
    else:
        click.echo(f"{answer['volume']} was cut, labelled {label!r}; no agent runs: the next one publishes it")


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
    return {**made[0], "label": label, "published": True}


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
    """Label a point that a replica's pool remembers; its source labels points as they are cut.

    \b
    replicator points label /srv/replica vm1@1041 friday
    """
    import time
    from dataclasses import replace

    from replicator.history.names import check_label
    from replicator.history.points import parse_specification
    from replicator.pool.opening import open_pool
    from replicator.repository import labelling
    from replicator.repository.source import open_source

    check_label(label)
    zone = local_zone()
    with open_source(str(pool)) as source:
        if source.pool is None:
            raise UsageError(f"{pool} is a log, and only appended to", mend="name a replica's pool")
        offer, found = source.find(parse_specification(point, zone), now_ns=time.time_ns(), zone=zone)
        taken = [each for each in offer.points if label in each.labels and each != found]
        if taken:
            raise ConflictError(f"{label!r} is the label of {taken[0].describe(zone)}", mend="choose another label")
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


def point_document(volume: NamedVolume, point: RestorePoint) -> dict[str, Any]:
    """The JSON of a point; see the module."""
    from datetime import UTC, datetime

    return {
        "volume": volume.name,
        "uuid": str(volume.uuid),
        "number": point.number,
        "timeline": point.timeline,
        "timestamp": datetime.fromtimestamp(point.timestamp_ns / 1e9, UTC).isoformat(),
        "timestamp_ns": point.timestamp_ns,
        "consistency": point.consistency.value,
        "labels": list(point.labels),
        "materialised": point.materialised,
        "size_bytes": point.size_bytes,
        "digest": point.digest.hex(),
        "held": point.held,
    }


def _instant(text: str, zone: tzinfo) -> int:
    """A time, or an age before now."""
    import time

    from replicator.history.points import ByAge, ByTime, parse_point

    wanted = parse_point(text, zone)
    if isinstance(wanted, ByTime):
        return wanted.timestamp_ns
    if isinstance(wanted, ByAge):
        return time.time_ns() - wanted.age_ns
    raise UsageError(f"{text!r} is neither a time nor an age", mend="write --since 2026-11-22T14:00, or --since -1h")
