"""The messages of option haggling, packed and unpacked; both ends use them.

    option         magic IHAVEOPT (8), option (4), length (4), data
    option reply   magic 0x3e889045565a9 (8), option it answers (4), type (4), length (4), data

    data of                    layout
    INFO, GO                   name length (4), name, count (2), count x item (2)
    LIST/SET_META_CONTEXT      name length (4), name, count (4), count x (length (4), query)
    REP_SERVER                 name length (4), name, the rest: a description for people
    REP_META_CONTEXT           context id (4), the rest: its name
    REP_INFO                   item (2), then
      INFO_EXPORT              size (8), transmission flags (2)
      INFO_NAME, _DESCRIPTION  the rest: text
      INFO_BLOCK_SIZE          minimum (4), preferred (4), maximum (4)

Big-endian; strings are UTF-8 without NUL, at most 4096 bytes.

Invariants
  O1  unpack(pack(value)) == value.
  O2  Whatever the bytes, only NbdFormatError (NbdTooBigError for too long a string) comes out, trailing bytes included.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from replicator.nbd import protocol as p
from replicator.nbd.failures import NbdFormatError, NbdTooBigError

OPTION = struct.Struct("!QII")
OPTION_REPLY = struct.Struct("!QIII")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_INFO_EXPORT = struct.Struct("!HQH")
_INFO_BLOCK_SIZE = struct.Struct("!HIII")


def pack_option(option: int, data: bytes = b"") -> bytes:
    """An option as the client sends it."""
    return OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data


def pack_option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """A reply to `option` as the server sends it."""
    return OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def decode_text(data: bytes, where: str) -> str:
    """A string of the protocol; `where` names it in the error."""
    if len(data) > p.MAX_STRING_BYTES:
        raise NbdTooBigError(where, f"at most {p.MAX_STRING_BYTES} bytes", f"{len(data)}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NbdFormatError(where, "UTF-8", f"{error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise NbdFormatError(where, "text without NUL", "a NUL")
    return text


class _Cursor:
    """Takes an option's data apart from the front; every shortage is an NbdFormatError that says where."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._at = 0

    def take(self, length: int) -> bytes:
        left = len(self._data) - self._at
        if length > left:
            raise NbdFormatError(self._where, f"{length} bytes at {self._at}", f"{left}")
        self._at += length
        return self._data[self._at - length : self._at]

    def integer(self, form: struct.Struct) -> int:
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def text(self) -> str:
        return decode_text(self.take(self.integer(_U32)), self._where)

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def finish(self) -> None:
        if left := len(self._data) - self._at:
            raise NbdFormatError(self._where, "nothing more", f"{left} trailing bytes")


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """The data of INFO and GO: an export's name and the items that the client wants to know."""

    name: str
    items: tuple[int, ...] = ()

    def pack(self) -> bytes:
        return _pack_text(self.name) + struct.pack(f"!H{len(self.items)}H", len(self.items), *self.items)

    @classmethod
    def unpack(cls, data: bytes) -> InfoRequest:
        """The value; NbdFormatError for anything else."""
        cursor = _Cursor(data, "NBD option INFO or GO")
        name = cursor.text()
        count = cursor.integer(_U16)
        items = struct.unpack(f"!{count}H", cursor.take(2 * count))
        cursor.finish()
        return cls(name, items)


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT: an export's name and queries."""

    name: str
    queries: tuple[str, ...] = ()

    def pack(self) -> bytes:
        return _pack_text(self.name) + _U32.pack(len(self.queries)) + b"".join(map(_pack_text, self.queries))

    @classmethod
    def unpack(cls, data: bytes) -> ContextRequest:
        """The value; NbdFormatError for anything else."""
        cursor = _Cursor(data, "NBD option META_CONTEXT")
        name = cursor.text()
        count = cursor.integer(_U32)
        if count > len(data) // _U32.size:
            raise NbdFormatError("NBD option META_CONTEXT", f"queries that fit {len(data)} bytes", f"{count} queries")
        queries = tuple(cursor.text() for _ in range(count))
        cursor.finish()
        return cls(name, queries)


def pack_server(name: str, description: str) -> bytes:
    """The data of a REP_SERVER reply: one export of a list."""
    return _pack_text(name) + description.encode()


def unpack_server(data: bytes) -> tuple[str, str]:
    """(name, description) of a REP_SERVER reply."""
    cursor = _Cursor(data, "NBD reply SERVER")
    return cursor.text(), decode_text(cursor.rest(), "NBD reply SERVER")


def pack_context(context_id: int, name: str) -> bytes:
    """The data of a REP_META_CONTEXT reply."""
    return _U32.pack(context_id) + name.encode()


def unpack_context(data: bytes) -> tuple[int, str]:
    """(context id, name) of a REP_META_CONTEXT reply."""
    cursor = _Cursor(data, "NBD reply META_CONTEXT")
    return cursor.integer(_U32), decode_text(cursor.rest(), "NBD reply META_CONTEXT")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """INFO_EXPORT: the size of an export and its transmission flags."""

    size_bytes: int
    flags: int

    def pack(self) -> bytes:
        return _INFO_EXPORT.pack(p.INFO_EXPORT, self.size_bytes, self.flags)


@dataclass(frozen=True, slots=True)
class BlockSizeInfo:
    """INFO_BLOCK_SIZE: what lengths and offsets a server takes, prefers and bears."""

    minimum_bytes: int = 1
    preferred_bytes: int = 4096
    maximum_bytes: int = p.MAX_REQUEST_BYTES

    def pack(self) -> bytes:
        return _INFO_BLOCK_SIZE.pack(p.INFO_BLOCK_SIZE, self.minimum_bytes, self.preferred_bytes, self.maximum_bytes)


@dataclass(frozen=True, slots=True)
class TextInfo:
    """INFO_NAME or INFO_DESCRIPTION: the canonical name of an export, or words about it."""

    item: int
    text: str

    def pack(self) -> bytes:
        return _U16.pack(self.item) + self.text.encode()


def unpack_info(data: bytes) -> ExportInfo | BlockSizeInfo | TextInfo | None:
    """The item of a REP_INFO reply; None for one that we don't know, which the specification has us ignore."""
    cursor = _Cursor(data, "NBD reply INFO")
    item = cursor.integer(_U16)
    if item == p.INFO_EXPORT and len(data) == _INFO_EXPORT.size:
        return ExportInfo(*_INFO_EXPORT.unpack(data)[1:])
    if item == p.INFO_BLOCK_SIZE and len(data) == _INFO_BLOCK_SIZE.size:
        return _block_size(*_INFO_BLOCK_SIZE.unpack(data)[1:])
    if item in (p.INFO_NAME, p.INFO_DESCRIPTION):
        return TextInfo(item, decode_text(cursor.rest(), "NBD reply INFO"))
    if item in (p.INFO_EXPORT, p.INFO_BLOCK_SIZE):
        raise NbdFormatError("NBD reply INFO", f"the length of item {item}", f"{len(data)} bytes")
    return None


def _block_size(minimum: int, preferred: int, maximum: int) -> BlockSizeInfo:
    """The three sizes, if they make sense: powers of two in order, a maximum that holds at least one block."""
    found = f"minimum {minimum}, preferred {preferred}, maximum {maximum}"
    if minimum == 0 or minimum & (minimum - 1) or minimum > 65536 or preferred & (preferred - 1) or preferred < minimum:
        raise NbdFormatError("NBD reply INFO", "block sizes that are powers of two, minimum first", found)
    if maximum < minimum or (maximum != 0xFFFFFFFF and maximum % minimum):
        raise NbdFormatError("NBD reply INFO", "a maximum that is a multiple of the minimum", found)
    return BlockSizeInfo(minimum, preferred, maximum)


def _pack_text(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data
