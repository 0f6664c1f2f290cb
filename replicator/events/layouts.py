"""Which body has which type number, and which fields in which order: the specification of all bodies.

    type  body                  fields, in order (names as in `bodies`; the encodings are `fields`')
    1     VolumeCreated         name text, size u64, host text, timestamp u64
    2     TimelineStarted       parent state name, name text, size u64, host text, timestamp u64
    3     PublisherOpened       epoch u32, host text, settings list of (text, text), timestamp u64
    4     TransactionBegan      number u64, transaction uuid, base optional state name, timestamp u64, size u64,
                                chunk bound u64, kind u8
    5     ChunksDiscarded       runs blob
    6     ChunksZeroed          runs blob
    7     ChunksWritten         n u32, f u32, then the tables and frames of `chunks`, one behind the other
    8     TransactionCommitted  number u64, counts 5 x u64, consistency u8, labels list of text,
                                group: u8 0, or u8 1, uuid, number u64, members list of (uuid, u64)
    9     TransactionAborted    number u64, transaction uuid, reason text
    10    VolumeRenamed         name text, timestamp u64
    11    VolumeDeleted         timestamp u64
    12    PointLabelled         point state name, label text, timestamp u64
    13    VolumeAttested        point state name, size u64, span chunks u32, hashes blob
    14    TimelineEnded         successor u32, host text, timestamp u64

Type numbers are never given again. Failure raised: FormatError for an unknown type, for fields that
break their value's rules, and for bytes left over.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.bodies import (
    Body,
    GroupCut,
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
from replicator.events.chunks import (
    CHUNKS_PER_EVENT_MAX,
    FRAME,
    ChunksDiscarded,
    ChunksWritten,
    ChunksZeroed,
)
from replicator.events.digests import DIGEST_BYTES
from replicator.events.fields import (
    BLOB,
    COUNTS,
    OPTIONAL_STATE_NAME,
    STATE_NAME,
    TEXT,
    U32,
    U64,
    UUID16,
    FieldCodec,
    FieldReader,
    enum_field,
    list_field,
    pair_field,
    value_field,
)
from replicator.events.values import Consistency, DeltaKind

_GROUP = value_field(GroupCut, (UUID16, U64, list_field(pair_field(UUID16, U64))), optional=True)

_FIELDS: dict[type[Any], tuple[int, tuple[FieldCodec, ...]]] = {
    VolumeCreated: (1, (TEXT, U64, TEXT, U64)),
    TimelineStarted: (2, (STATE_NAME, TEXT, U64, TEXT, U64)),
    PublisherOpened: (3, (U32, TEXT, list_field(pair_field(TEXT, TEXT)), U64)),
    TransactionBegan: (4, (U64, UUID16, OPTIONAL_STATE_NAME, U64, U64, U64, enum_field(DeltaKind))),
    ChunksDiscarded: (5, (BLOB,)),
    ChunksZeroed: (6, (BLOB,)),
    TransactionCommitted: (8, (U64, COUNTS, enum_field(Consistency), list_field(TEXT), _GROUP)),
    TransactionAborted: (9, (U64, UUID16, TEXT)),
    VolumeRenamed: (10, (TEXT, U64)),
    VolumeDeleted: (11, (U64,)),
    PointLabelled: (12, (STATE_NAME, TEXT, U64)),
    VolumeAttested: (13, (STATE_NAME, U64, U32, BLOB)),
    TimelineEnded: (14, (U32, TEXT, U64)),
}
_WRITTEN = 7
_CODECS = {kind: value_field(kind, codecs) for kind, (_, codecs) in _FIELDS.items()}
_TYPES: dict[type[Any], int] = {kind: number for kind, (number, _) in _FIELDS.items()} | {ChunksWritten: _WRITTEN}
_KINDS = {number: kind for kind, number in _TYPES.items()}
_TABLES = struct.Struct("<II")


def type_of(body: Body) -> int:
    """The type number of `body`."""
    return _TYPES[type(body)]


def type_name(number: int) -> str:
    """What people call the type `number`."""
    kind = _KINDS.get(number)
    return kind.__name__ if kind else f"type {number}"


def encode_body(body: Body) -> list[Buffer]:
    """The parts of `body`, to be joined."""
    if isinstance(body, ChunksWritten):
        head = _TABLES.pack(body.chunk_count, len(body.frames))
        return [head, body.indices, body.masks, body.hashes, body.frame_table, *body.frames]
    return [_CODECS[type(body)].write(body)]


def decode_body(number: int, data: Buffer, where: str) -> Body:
    """The body of type `number` that `data` holds, wholly; FormatError at `where` for anything else."""
    kind = _KINDS.get(number)
    if kind is None:
        raise FormatError(where, "an event type from 1 to 14", str(number))
    reader = FieldReader(data, f"{where}, {kind.__name__}")
    try:
        body: Body = _read_written(reader) if kind is ChunksWritten else _CODECS[kind].read(reader)
    except FormatError as error:
        if error.where.startswith(where):
            raise
        raise FormatError(f"{where}, {error.where}", error.expected, error.found) from None
    reader.finish()
    return body


def _read_written(reader: FieldReader) -> ChunksWritten:
    chunks, frames = _TABLES.unpack(reader.take(_TABLES.size))
    if not (1 <= frames <= chunks <= CHUNKS_PER_EVENT_MAX):
        raise reader.wrong(f"1 <= frames <= chunks <= {CHUNKS_PER_EVENT_MAX}", f"{frames} frames, {chunks} chunks")
    indices, masks, hashes, table = (
        bytes(reader.take(length))
        for length in (chunks * 8, chunks * 2, chunks * DIGEST_BYTES, frames * FRAME.itemsize)
    )
    stored = np.frombuffer(table, dtype=FRAME)["stored_bytes"].tolist()
    return ChunksWritten(indices, masks, hashes, table, tuple(reader.take(length) for length in stored))
