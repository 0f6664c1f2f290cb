"""Reply headers, as a server packs them: whole, or with `pack_into` straight into its arena.

    simple reply                         structured reply chunk
    offset  size  field                  offset  size  field
    0       4     magic 0x67446698       0       4     magic 0x668e33ef
    4       4     error                  4       2     flags (bit 0: DONE, the last of its reply)
    8       8     cookie                 6       2     type
    16            data of a READ         8       8     cookie
                                         16      4     length of what follows
                                         20            by type:
                                           OFFSET_DATA    offset (8), data
                                           OFFSET_HOLE    offset (8), length (4)
                                           ERROR          error (4), length (2), message
                                           ERROR_OFFSET   the same, then the offset (8)
                                           BLOCK_STATUS   see extents

Big-endian. The fields before the cookie are one 64-bit head, a constant for each common case:

    SIMPLE.pack_into(arena, at, SIMPLE_OK, cookie)                                   then the data of a READ, at + 16
    DATA.pack_into(arena, at, DATA_DONE, cookie, 8 + length, offset)                 then its data, at + 28
    HOLE.pack_into(arena, at, HOLE_DONE, cookie, 12, offset, length)
    CHUNK.pack_into(arena, at, NONE_DONE, cookie, 0)                                 success without data

Where structured replies were agreed on, a READ must be answered by chunks, its errors too; the others may be
answered by a simple reply as long as they carry no data.
"""

from __future__ import annotations

import struct

from replicator.nbd import protocol as p

SIMPLE = struct.Struct("!QQ")  # head, cookie
CHUNK = struct.Struct("!QQI")  # head, cookie, length
DATA = struct.Struct("!QQIQ")  # head, cookie, 8 + length, offset
HOLE = struct.Struct("!QQIQI")  # head, cookie, 12, offset, length
_ERROR = struct.Struct("!IH")
_ERROR_OFFSET = struct.Struct("!Q")

SIMPLE_OK = p.SIMPLE_REPLY_MAGIC << 32
CHUNK_HEAD = p.STRUCTURED_REPLY_MAGIC << 32
_DONE = p.REPLY_FLAG_DONE << 16
NONE_DONE = CHUNK_HEAD | _DONE | p.REPLY_NONE
DATA_MORE = CHUNK_HEAD | p.REPLY_OFFSET_DATA
DATA_DONE = DATA_MORE | _DONE
HOLE_MORE = CHUNK_HEAD | p.REPLY_OFFSET_HOLE
HOLE_DONE = HOLE_MORE | _DONE


def chunk_head(reply_type: int, done: bool) -> int:
    """The head of a structured reply chunk of any type."""
    return CHUNK_HEAD | (_DONE if done else 0) | reply_type


def pack_simple(cookie: int, error: int = 0) -> bytes:
    """A simple reply; with error 0, the data of a READ goes behind it."""
    return SIMPLE.pack(SIMPLE_OK | error, cookie)


def pack_data(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """The header of a chunk with `length` bytes of data read at `offset`; the data goes behind it."""
    return DATA.pack(DATA_DONE if done else DATA_MORE, cookie, 8 + length, offset)


def pack_hole(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """A chunk that says: `length` bytes at `offset` read as zeros."""
    return HOLE.pack(HOLE_DONE if done else HOLE_MORE, cookie, 12, offset, length)


def pack_none(cookie: int) -> bytes:
    """The last chunk of a reply that has nothing to say: success, unless an error chunk came before."""
    return CHUNK.pack(NONE_DONE, cookie, 0)


def pack_error(cookie: int, error: int, message: str = "", offset: int | None = None) -> bytes:
    """The last chunk of a reply that failed, with words for people; with `offset`, where it failed."""
    assert error
    words = message.encode()[: p.MAX_STRING_BYTES].decode(errors="ignore").encode()
    reply_type, tail = p.REPLY_ERROR, b""
    if offset is not None:
        reply_type, tail = p.REPLY_ERROR_OFFSET, _ERROR_OFFSET.pack(offset)
    payload = _ERROR.pack(error, len(words)) + words + tail
    return CHUNK.pack(chunk_head(reply_type, True), cookie, len(payload)) + payload


def pack_failure(cookie: int, error: int, *, structured: bool, message: str = "") -> bytes:
    """A failed request's whole reply, of the kind that was agreed on."""
    return pack_error(cookie, error, message) if structured else pack_simple(cookie, error)
