"""Bounded little-endian fields: the alphabet in which bodies, states and small records are written.

    u8 u16 u32 u64    little-endian, unsigned; bool is a u8, 0 or 1
    uuid, digest      16 bytes as they are
    text              u16 length, UTF-8
    blob              u32 length, bytes
    state name        u32 timeline, u64 number, digest; optional: all zero is None
    list              u16 count, the items

Invariants
  A1  A read beyond the end, a length beyond its bound, wrong UTF-8 and bytes left over are FormatErrors.
  A2  Each value has exactly one encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import fields
from enum import IntEnum
from typing import Any, NamedTuple
from uuid import UUID

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.digests import DIGEST_BYTES
from replicator.events.values import Counts, StateName

_U8, _U16, _U32, _U64 = (struct.Struct(code) for code in ("<B", "<H", "<I", "<Q"))
_NAME = struct.Struct("<IQ16s")
_COUNTS = struct.Struct("<5Q")
_NO_NAME = bytes(_NAME.size)


class FieldReader:
    """Takes fields from the front of a buffer, and refuses to read beyond it (A1)."""

    def __init__(self, data: Buffer, where: str) -> None:
        self._data = memoryview(data)
        self._offset = 0
        self.where = where

    def take(self, length_bytes: int) -> memoryview:
        """The next `length_bytes`."""
        end = self._offset + length_bytes
        if end > len(self._data):
            left = len(self._data) - self._offset
            raise self.wrong(f"{length_bytes} more bytes", f"{left}")
        part = self._data[self._offset : end]
        self._offset = end
        return part

    def number(self, layout: struct.Struct) -> int:
        """The next number of one struct code."""
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def finish(self) -> None:
        """Nothing may be left."""
        left = len(self._data) - self._offset
        if left:
            raise self.wrong("the end", f"{left} bytes left over")

    def wrong(self, expected: str, found: str) -> FormatError:
        """A FormatError at the present offset."""
        return FormatError(f"{self.where}, byte {self._offset}", expected, found)


class FieldCodec(NamedTuple):
    """How one kind of field is written and read."""

    write: Callable[[Any], bytes]
    read: Callable[[FieldReader], Any]


def _write_text(value: str) -> bytes:
    encoded = value.encode()
    return _U16.pack(len(encoded)) + encoded


def _read_text(reader: FieldReader) -> str:
    raw = bytes(reader.take(reader.number(_U16)))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise reader.wrong("UTF-8", str(error)) from None


def _write_name(value: StateName | None) -> bytes:
    return _NO_NAME if value is None else _NAME.pack(value.timeline, value.number, value.digest)


def _read_optional_name(reader: FieldReader) -> StateName | None:
    raw = reader.take(_NAME.size)
    return None if raw == _NO_NAME else StateName(*_NAME.unpack(raw))


def _read_name(reader: FieldReader) -> StateName:
    return StateName(*_NAME.unpack(reader.take(_NAME.size)))


def _read_bool(reader: FieldReader) -> bool:
    value = reader.number(_U8)
    if value > 1:
        raise reader.wrong("0 or 1", str(value))
    return value == 1


def _write_blob(value: Buffer) -> bytes:
    return _U32.pack(len(value)) + bytes(value)


def _write_counts(value: Counts) -> bytes:
    return _COUNTS.pack(*(getattr(value, name) for name in Counts.__slots__))


U8 = FieldCodec(_U8.pack, lambda reader: reader.number(_U8))
BOOL = FieldCodec(_U8.pack, _read_bool)
U16 = FieldCodec(_U16.pack, lambda reader: reader.number(_U16))
U32 = FieldCodec(_U32.pack, lambda reader: reader.number(_U32))
U64 = FieldCodec(_U64.pack, lambda reader: reader.number(_U64))
UUID16 = FieldCodec(lambda value: value.bytes, lambda reader: UUID(bytes=bytes(reader.take(16))))
DIGEST = FieldCodec(bytes, lambda reader: bytes(reader.take(DIGEST_BYTES)))
TEXT = FieldCodec(_write_text, _read_text)
BLOB = FieldCodec(_write_blob, lambda reader: bytes(reader.take(reader.number(_U32))))
STATE_NAME = FieldCodec(_write_name, _read_name)
OPTIONAL_STATE_NAME = FieldCodec(_write_name, _read_optional_name)
COUNTS = FieldCodec(_write_counts, lambda reader: Counts(*_COUNTS.unpack(reader.take(_COUNTS.size))))


def enum_field(kind: type[IntEnum]) -> FieldCodec:
    """A u8 that must be a member of `kind`."""

    def read(reader: FieldReader) -> IntEnum:
        value = reader.number(_U8)
        try:
            return kind(value)
        except ValueError:
            raise reader.wrong(f"a {kind.__name__}", str(value)) from None

    return FieldCodec(lambda value: _U8.pack(int(value)), read)


def list_field(item: FieldCodec) -> FieldCodec:
    """A u16 count and as many `item`s, as a tuple."""

    def write(values: tuple[Any, ...]) -> bytes:
        return _U16.pack(len(values)) + b"".join(item.write(value) for value in values)

    return FieldCodec(write, lambda reader: tuple(item.read(reader) for _ in range(reader.number(_U16))))


def pair_field(first: FieldCodec, second: FieldCodec) -> FieldCodec:
    """Two fields as a pair."""
    return FieldCodec(
        lambda value: first.write(value[0]) + second.write(value[1]),
        lambda reader: (first.read(reader), second.read(reader)),
    )


def value_field(kind: type, codecs: tuple[FieldCodec, ...], *, optional: bool = False) -> FieldCodec:
    """A frozen value, field by field in its own order; `optional` puts a u8 before it, 0 for None."""
    names = tuple(each.name for each in fields(kind))
    assert len(names) == len(codecs), f"{kind.__name__} has other fields"

    def write(value: object) -> bytes:
        if optional and value is None:
            return b"\0"
        parts = [codec.write(getattr(value, name)) for name, codec in zip(names, codecs, strict=True)]
        return (b"\1" if optional else b"") + b"".join(parts)

    def read(reader: FieldReader) -> object:
        present = reader.number(_U8) if optional else 1
        if present > 1:
            raise reader.wrong("0 or 1", str(present))
        return kind(*(codec.read(reader) for codec in codecs)) if present else None

    return FieldCodec(write, read)
