"""The small objects of an object log: records (events/record) that stand beside the segments.

    object            magic   body
    marker            "RPLG"  text "replicator log", format u32 = 1
    catalogue entry   "RPCE"  volume uuid, timeline u32, name text, host text, size u64, deleted bool
    claim             "RPCL"  host text
    registration      "RPRG"  volume uuid, receiver uuid, name text, timeline u32, number u64, sequence u64, at_ns u64

`start` is a stream's state as it is (events/state). All are written whole, and checked when read.
"""

from __future__ import annotations

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.fields import BOOL, TEXT, U32, U64, UUID16, pair_field, value_field
from replicator.events.record import decode_record, encode_record
from replicator.log.interface import Registration, VolumeEntry

_MARKER = pair_field(TEXT, U32)
_ENTRY = value_field(VolumeEntry, (UUID16, U32, TEXT, TEXT, U64, BOOL))
_REGISTRATION = value_field(Registration, (UUID16, UUID16, TEXT, U32, U64, U64, U64))
_FORMAT = ("replicator log", 1)


def encode_marker() -> bytes:
    """The marker of a log of this format."""
    return encode_record(b"RPLG", _MARKER, _FORMAT)


def require_marker(data: Buffer, where: str) -> None:
    """FormatError unless `data` is the marker of a format that we know."""
    found = decode_record(b"RPLG", _MARKER, data, where)
    if found != _FORMAT:
        raise FormatError(where, repr(_FORMAT), repr(found), mend="use a newer version of replicator")


def encode_entry(entry: VolumeEntry) -> bytes:
    """A catalogue entry."""
    return encode_record(b"RPCE", _ENTRY, entry)


def decode_entry(data: Buffer, where: str) -> VolumeEntry:
    """The catalogue entry that `data` is."""
    value = decode_record(b"RPCE", _ENTRY, data, where)
    if not isinstance(value, VolumeEntry):
        raise FormatError(where, "a catalogue entry", type(value).__name__)
    return value


def encode_claim(host: str) -> bytes:
    """The claim of a timeline by `host`."""
    return encode_record(b"RPCL", TEXT, host)


def encode_registration(registration: Registration) -> bytes:
    """A receiver's registration."""
    return encode_record(b"RPRG", _REGISTRATION, registration)


def decode_registration(data: Buffer, where: str) -> Registration:
    """The registration that `data` is."""
    value = decode_record(b"RPRG", _REGISTRATION, data, where)
    if not isinstance(value, Registration):
        raise FormatError(where, "a registration", type(value).__name__)
    return value
