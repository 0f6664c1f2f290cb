"""The frame of small values that stand outside the chain: beacons, saved states, a log's own notes.

Little-endian.

    offset  size  field
    0       4     magic        says which kind of record it is
    4       2     version      1
    6       2     flags        0; unknown ones are refused
    8       4     body_bytes
    12      4     crc32c       of bytes 0 to 12, and the body
    16      ..    body         fields, wholly; at most 64 KiB

Failure raised: FormatError with where, expected, found.
"""

from __future__ import annotations

import struct

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.digests import crc32c
from replicator.events.fields import FieldCodec, FieldReader
from replicator.units import KIB

RECORD_BYTES_MAX = 64 * KIB  # the largest, a saved state, has about 500 bytes; room for what comes
_HEAD = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + _CRC.size
_VERSION = 1


def encode_record(magic: bytes, codec: FieldCodec, value: object) -> bytes:
    """`value` as a record of kind `magic`."""
    body = codec.write(value)
    assert len(body) + _HEAD_BYTES <= RECORD_BYTES_MAX, "a record outgrew its limit"
    head = _HEAD.pack(magic, _VERSION, 0, len(body))
    return head + _CRC.pack(crc32c(body, crc32c(head))) + body


def decode_record(magic: bytes, codec: FieldCodec, data: Buffer, where: str) -> object:
    """The value that `data` holds, wholly."""
    if not _HEAD_BYTES <= len(data) <= RECORD_BYTES_MAX:
        raise FormatError(where, f"{_HEAD_BYTES} to {RECORD_BYTES_MAX} bytes", f"{len(data)}")
    head, body = bytes(data[: _HEAD.size]), bytes(data[_HEAD_BYTES:])
    expected = (magic, _VERSION, 0, len(body))
    found = _HEAD.unpack(head)
    if found != expected:
        raise FormatError(where, f"magic, version, flags, length {expected}", f"{found}")
    crc, computed = _CRC.unpack_from(data, _HEAD.size)[0], crc32c(body, crc32c(head))
    if crc != computed:
        raise FormatError(f"{where}, crc32c", f"{crc:08x}", f"{computed:08x}")
    reader = FieldReader(body, where)
    try:
        value = codec.read(reader)
    except FormatError as error:
        raise FormatError(f"{where}, {error.where}", error.expected, error.found) from None
    reader.finish()
    return value
