"""Events as `replicator log show` prints them: a line for people, a document for programs; never their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from replicator.cli.show import size_text
from replicator.events.bodies import (
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeAttested,
    VolumeCreated,
    VolumeDeleted,
    VolumeRenamed,
)
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.values import Counts, StateName

_BINARY_SHOWN_BYTES = 64  # of hashes in a document: a digest whole, an attestation's megabyte not


def event_document(event: Event) -> dict[str, Any]:
    """The JSON of an event; of chunks how many, and which."""
    header = event.header
    return {
        "sequence": header.sequence,
        "type": type(event.body).__name__,
        "timeline": header.timeline,
        "epoch": header.epoch,
        "number": header.number,
        "bytes": len(event.encoded),
        "digest": event.digest.hex(),
        "previous": header.previous.hex(),
        "body": _body_facts(event.body),
    }


def _body_facts(body: Any) -> dict[str, Any]:
    if isinstance(body, ChunksWritten):
        return {
            "chunks": body.chunk_count,
            "pages": body.counts.written_pages,
            "stored_bytes": body.counts.stored_bytes,
            "first": body.first_chunk,
            "end": body.end_chunk,
        }
    if isinstance(body, ChunksDiscarded | ChunksZeroed):
        return {"chunks": body.chunk_count, "runs": len(body.table), "first": body.first_chunk, "end": body.end_chunk}
    assert is_dataclass(body)
    return {each.name: _plain(getattr(body, each.name)) for each in fields(body)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex() if len(value) <= _BINARY_SHOWN_BYTES else f"{len(value)} bytes"
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(each) for name, each in asdict(value).items()}
    return value


def event_text(event: Event) -> str:
    """What the event says, in a line."""
    say: Callable[[Any], str] = _TEXTS[type(event.body)]
    return say(event.body)


def iso(timestamp_ns: int) -> str:
    """An instant as ISO 8601, universal."""
    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).isoformat()


def _state(name: StateName | None) -> str:
    return f"@{name}" if name is not None else "nothing"


def _counts(counts: Counts) -> str:
    written = f"{counts.written_chunks} written ({counts.written_pages} pages, {size_text(counts.stored_bytes)} stored)"
    return f"{written}, {counts.zeroed_chunks} zeroed, {counts.discarded_chunks} discarded"


def _began(body: TransactionBegan) -> str:
    what = f"@{body.number} on {_state(body.base)}, cut {iso(body.timestamp_ns)}, {size_text(body.size_bytes)}"
    return f"{what}, at most {body.chunk_bound} chunks"


def _committed(body: TransactionCommitted) -> str:
    labels = f", labelled {', '.join(body.labels)}" if body.labels else ""
    group = f", cut {body.group.number} of a group of {len(body.group.members)}" if body.group is not None else ""
    return f"@{body.number}: chunks: {_counts(body.counts)}; {body.consistency.name.lower()}{labels}{group}"


def _runs(body: ChunksDiscarded | ChunksZeroed) -> str:
    return f"{body.chunk_count} chunks in {len(body.table)} runs of {body.first_chunk}…{body.end_chunk - 1}"


def _written(body: ChunksWritten) -> str:
    stored = size_text(body.counts.stored_bytes)
    where = f"{body.first_chunk}…{body.end_chunk - 1}"
    return f"{body.chunk_count} chunks of {where}, {body.counts.written_pages} pages, {stored} stored"


def _opened(body: PublisherOpened) -> str:
    settings = "".join(f", {name}={value}" for name, value in body.settings)
    return f"epoch {body.epoch}, by {body.host}, {iso(body.timestamp_ns)}{settings}"


def _attested(body: VolumeAttested) -> str:
    spans = len(body.hashes) // 16
    return f"{_state(body.point)}: {spans} hashes over {body.span_chunks} chunks each, {size_text(body.size_bytes)}"


_TEXTS: dict[type[Any], Callable[[Any], str]] = {
    VolumeCreated: lambda b: f"{b.name}, {size_text(b.size_bytes)}, by {b.host}, {iso(b.timestamp_ns)}",
    TimelineStarted: lambda b: f"{b.name} from {_state(b.parent)}, by {b.host}, {iso(b.timestamp_ns)}",
    PublisherOpened: _opened,
    TransactionBegan: _began,
    ChunksDiscarded: _runs,
    ChunksZeroed: _runs,
    ChunksWritten: _written,
    TransactionCommitted: _committed,
    TransactionAborted: lambda b: f"@{b.number}: {b.reason}",
    VolumeRenamed: lambda b: f"{b.name}, {iso(b.timestamp_ns)}",
    VolumeDeleted: lambda b: f"at the source, {iso(b.timestamp_ns)}",
    PointLabelled: lambda b: f"{_state(b.point)} is {b.label}, {iso(b.timestamp_ns)}",
    VolumeAttested: _attested,
    TimelineEnded: lambda b: f"timeline {b.successor} took over, by {b.host}, {iso(b.timestamp_ns)}",
}
