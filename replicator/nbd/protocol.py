"""The numbers of the NBD protocol (doc/proto.md of NetworkBlockDevice/nbd), under the names it gives them.

All integers on the wire are big-endian and unsigned. The prefixes follow the specification:

    FLAG_*, FLAG_C_*   handshake flags of the server, of the client
    OPT_*, REP_*       options, replies to options (bit 31: an error)
    INFO_*             the items of an INFO or GO reply
    SEND_*, …          transmission flags (TRANSMIT_*), 16 bits, sent with the size of an export
    CMD_*, CMD_FLAG_*  request types and their flags
    REPLY_*            types of structured reply chunks (bit 15: an error), REPLY_FLAG_DONE
    E*                 the error values, which happen to be Linux's errno
    STATE_*            flags of block status descriptors

Plain integers instead of enums: the transmission phase compares them some hundred thousand times a second.

Absent: oldstyle negotiation, EXTENDED_HEADERS (refused as unknown, as the specification wants), RESIZE.
"""

from __future__ import annotations

from typing import Final

from replicator.units import KIB, MIB

# Handshake.
INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
DEFAULT_PORT: Final = 10809

FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1
FLAG_C_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_C_NO_ZEROES: Final = 1 << 1
EXPORT_NAME_ZEROES: Final = 124

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR_BIT: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR_BIT | 1
REP_ERR_POLICY: Final = REP_ERROR_BIT | 2
REP_ERR_INVALID: Final = REP_ERROR_BIT | 3
REP_ERR_TLS_REQD: Final = REP_ERROR_BIT | 5
REP_ERR_UNKNOWN: Final = REP_ERROR_BIT | 6
REP_ERR_SHUTDOWN: Final = REP_ERROR_BIT | 7
REP_ERR_TOO_BIG: Final = REP_ERROR_BIT | 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# Transmission flags.
TRANSMIT_HAS_FLAGS: Final = 1 << 0
TRANSMIT_READ_ONLY: Final = 1 << 1
TRANSMIT_SEND_FLUSH: Final = 1 << 2
TRANSMIT_SEND_FUA: Final = 1 << 3
TRANSMIT_SEND_TRIM: Final = 1 << 5
TRANSMIT_SEND_WRITE_ZEROES: Final = 1 << 6
TRANSMIT_SEND_DF: Final = 1 << 7
TRANSMIT_CAN_MULTI_CONN: Final = 1 << 8
TRANSMIT_SEND_CACHE: Final = 1 << 10
TRANSMIT_SEND_FAST_ZERO: Final = 1 << 11

# Requests.
REQUEST_MAGIC: Final = 0x25609513
REQUEST_BYTES: Final = 28

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

# Replies.
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
SIMPLE_REPLY_BYTES: Final = 16
STRUCTURED_REPLY_BYTES: Final = 20

REPLY_FLAG_DONE: Final = 1 << 0
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR_BIT: Final = 1 << 15
REPLY_ERROR: Final = REPLY_ERROR_BIT | 1
REPLY_ERROR_OFFSET: Final = REPLY_ERROR_BIT | 2

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

# Block status.
BASE_ALLOCATION: Final = "base:allocation"
CHANGED_PREFIX: Final = "replicator:changed:"
STATE_HOLE: Final = 1 << 0  # base:allocation: no data block stands behind it
STATE_ZERO: Final = 1 << 1  # base:allocation: it reads as zeros
STATE_CHANGED: Final = 1 << 0  # replicator:changed:SNAPSHOT: its data block isn't the snapshot's

# Limits.
MAX_REQUEST_BYTES: Final = 32 * MIB  # of a READ or WRITE: what the specification asks every server to take
MAX_STRING_BYTES: Final = 4096  # of a name, query or message: the specification's own limit
MAX_OPTION_BYTES: Final = 64 * KIB  # of an option's data, and of a reply's: fifteen of the longest strings
MAX_OPTIONS: Final = 256  # of one client: real ones send ten, and each costs us more than it costs them
MAX_HAGGLING_BYTES: Final = 16 * MIB  # of replies after which a client gets no more: room for 100,000 exports
MAX_CONTEXTS: Final = 64  # selected in one connection: each BLOCK_STATUS answers all of them
MAX_LISTED: Final = 1 << 16  # exports or contexts that a client reads from one server's list
MAX_EXTENTS: Final = 16384  # descriptors of one BLOCK_STATUS chunk: 128 KiB of reply
