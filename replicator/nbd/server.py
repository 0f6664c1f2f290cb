"""ServerHandshake: from the greeting to an opened export, as a state machine over bytes.

    state      bytes                      goes to    tells the loop
    FLAGS      4 bytes of client flags    OPTIONS    nothing; Hangup for a flag that we don't know
    OPTIONS    an option                  OPTIONS    Send(replies)
               STARTTLS, accepted         UPGRADE    Send(ack), StartTls
               ABORT                      CLOSED     Send(ack), Hangup()
               GO, EXPORT_NAME, granted   BEGUN      Send(reply), Begin(session)
               no option's magic, an option longer than 64 KiB, too many options,
               EXPORT_NAME that can't be granted (it has no error reply)    CLOSED   Hangup(error)
    UPGRADE    tls_started()              OPTIONS    all that was agreed on before is forgotten
               any bytes                  CLOSED     Hangup(error): said in the clear, to be believed inside TLS
    BEGUN      kept as `leftover`         BEGUN      nothing: they are the first requests

Options refused with a reply, and the connection goes on: unknown ones (ERR_UNSUP), malformed data
(ERR_INVALID), too long strings (ERR_TOO_BIG), unknown exports (ERR_UNKNOWN), anything but STARTTLS and ABORT
where TLS is required and not yet there (ERR_TLS_REQD), metadata contexts before structured replies (ERR_INVALID).

Wildcards: LIST_META_CONTEXT takes no query (all contexts), `base:` and `replicator:` (all of a namespace),
`replicator:changed:` (all snapshots) and whole names. SET_META_CONTEXT takes whole names only, as nbdkit and
qemu do: wildcards list, names select.

Invariants
  H1  However the stream is split, the events are the same (but for a StartTls with bytes in the clear right
      behind it: that one isn't told, only the Hangup is).
  H2  Never more than one option (64 KiB) is kept, beside what a single call of receive brought; and who has
      been sent 16 MiB of replies is sent no more: pipelined LISTs don't pile up.
  H3  Contexts belong to the export that they were set for: opening another one drops them.
  H4  Nothing of what was agreed on in the clear holds inside TLS.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from replicator._buffer import Buffer
from replicator.nbd import protocol as p
from replicator.nbd.export import MAXIMUM_BYTES, MINIMUM_BYTES, Context, Export, Exports, Session
from replicator.nbd.failures import NbdFormatError, NbdTooBigError
from replicator.nbd.handshake import Hangup, Send, StartTls, Tls
from replicator.nbd.options import (
    OPTION,
    BlockSizeInfo,
    ContextRequest,
    ExportInfo,
    InfoRequest,
    TextInfo,
    decode_text,
    pack_context,
    pack_option_reply,
    pack_server,
)

GREETING = struct.pack("!QQH", p.INIT_MAGIC, p.OPTION_MAGIC, p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)
_CLIENT_FLAGS = struct.Struct("!I")
_OLD_EXPORT = struct.Struct("!QH")
_KNOWN_CLIENT_FLAGS = p.FLAG_C_FIXED_NEWSTYLE | p.FLAG_C_NO_ZEROES


@dataclass(frozen=True, slots=True)
class Begin:
    """The handshake is over: requests follow, `session` says what for."""

    session: Session


ServerEvent: TypeAlias = Send | StartTls | Hangup | Begin


class _State(Enum):
    FLAGS = "flags"
    OPTIONS = "options"
    UPGRADE = "upgrade"
    BEGUN = "begun"
    CLOSED = "closed"


class _RefusalError(Exception):
    """An option that is answered with an error, after which the haggling goes on."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(message)
        self.reply = reply
        self.message = message


class ServerHandshake:
    """One connection's handshake, server's side; send GREETING first, then feed what arrives."""

    def __init__(self, exports: Exports, tls: Tls = Tls.NONE) -> None:
        self._exports = exports
        self._tls = tls
        self._inside_tls = False
        self._state = _State.FLAGS
        self._buffer = bytearray()
        self._client_flags = 0
        self._options_seen = 0
        self._replied_bytes = 0
        self._structured = False
        self._contexts: tuple[Context, ...] = ()
        self._contexts_of = ""
        self._answers: dict[int, Callable[[int, bytes], list[ServerEvent]]] = {
            p.OPT_ABORT: self._abort,
            p.OPT_LIST: self._list,
            p.OPT_STARTTLS: self._start_tls,
            p.OPT_INFO: self._info,
            p.OPT_GO: self._go,
            p.OPT_STRUCTURED_REPLY: self._structured_reply,
            p.OPT_LIST_META_CONTEXT: self._list_contexts,
            p.OPT_SET_META_CONTEXT: self._set_contexts,
        }

    @property
    def leftover(self) -> bytes:
        """What came behind the last option: the first bytes of the transmission phase."""
        assert self._state is _State.BEGUN
        return bytes(self._buffer)

    def receive(self, data: Buffer) -> list[ServerEvent]:
        """What to do about `data`, in order."""
        if self._state is _State.CLOSED:
            return []
        self._buffer += data
        events: list[ServerEvent] = []
        try:
            while (more := self._step()) is not None:
                events += more
        except NbdFormatError as error:
            events = [event for event in events if not isinstance(event, StartTls)]
            events.append(Hangup(error))
            self._state = _State.CLOSED
        if self._state is _State.CLOSED:
            self._buffer.clear()
        return events

    def tls_started(self) -> None:
        """The socket speaks TLS now: the haggling begins anew inside it (H4)."""
        assert self._state is _State.UPGRADE
        self._inside_tls = True
        self._structured = False
        self._contexts = ()
        self._state = _State.OPTIONS

    def _step(self) -> list[ServerEvent] | None:
        """The events of the next whole message, or None if there is none yet."""
        if self._state is _State.FLAGS:
            return self._take_flags()
        if self._state is _State.OPTIONS:
            return self._take_option()
        if self._state is _State.UPGRADE and self._buffer:
            raise NbdFormatError("NBD option STARTTLS", "nothing before TLS", "bytes in the clear")
        return None

    def _take_flags(self) -> list[ServerEvent] | None:
        if len(self._buffer) < _CLIENT_FLAGS.size:
            return None
        (self._client_flags,) = _CLIENT_FLAGS.unpack(self._take(_CLIENT_FLAGS.size))
        if self._client_flags & ~_KNOWN_CLIENT_FLAGS:
            raise NbdFormatError("NBD client flags", "0 to 3", f"{self._client_flags:#x}")
        self._state = _State.OPTIONS
        return []

    def _take_option(self) -> list[ServerEvent] | None:
        if len(self._buffer) < OPTION.size:
            return None
        magic, option, length = OPTION.unpack_from(self._buffer)
        if magic != p.OPTION_MAGIC:
            raise NbdFormatError("NBD option", f"magic {p.OPTION_MAGIC:#x}", f"{magic:#x}")
        if length > p.MAX_OPTION_BYTES:
            raise NbdFormatError(f"NBD option {option}", f"at most {p.MAX_OPTION_BYTES} bytes", f"{length}")
        if len(self._buffer) < OPTION.size + length:
            return None
        self._options_seen += 1
        if self._options_seen > p.MAX_OPTIONS:
            raise NbdFormatError("NBD options", f"at most {p.MAX_OPTIONS} of them", "one more")
        if self._replied_bytes > p.MAX_HAGGLING_BYTES:
            raise NbdFormatError("NBD options", f"replies of {p.MAX_HAGGLING_BYTES} bytes", "one more option")
        events = self._answer(option, self._take(OPTION.size + length)[OPTION.size :])
        self._replied_bytes += sum(len(event.data) for event in events if isinstance(event, Send))
        return events

    def _take(self, length: int) -> bytes:
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _answer(self, option: int, data: bytes) -> list[ServerEvent]:
        in_the_clear = self._tls is Tls.REQUIRED and not self._inside_tls
        if option == p.OPT_EXPORT_NAME:
            return self._export_name(data, in_the_clear)
        try:
            if in_the_clear and option not in (p.OPT_STARTTLS, p.OPT_ABORT):
                raise _RefusalError(p.REP_ERR_TLS_REQD, "this server asks for TLS first")
            if option not in self._answers:
                raise _RefusalError(p.REP_ERR_UNSUP, "unknown option")
            return self._answers[option](option, data)
        except _RefusalError as refusal:
            return [Send(pack_option_reply(option, refusal.reply, refusal.message.encode()))]
        except NbdTooBigError as error:
            return [Send(pack_option_reply(option, p.REP_ERR_TOO_BIG, str(error).encode()))]
        except NbdFormatError as error:
            return [Send(pack_option_reply(option, p.REP_ERR_INVALID, str(error).encode()))]

    def _export_name(self, data: bytes, in_the_clear: bool) -> list[ServerEvent]:
        """The option without an error reply: what can't be granted ends the connection."""
        name = decode_text(data, "NBD option EXPORT_NAME")
        export = None if in_the_clear else self._exports.find(name)
        if export is None:
            raise NbdFormatError(
                "NBD option EXPORT_NAME", "TLS first" if in_the_clear else "an export's name", f"{name!r}"
            )
        zeroes = 0 if self._client_flags & p.FLAG_C_NO_ZEROES else p.EXPORT_NAME_ZEROES
        reply = _OLD_EXPORT.pack(export.size_bytes, export.transmission_flags(self._structured)) + bytes(zeroes)
        return [Send(reply), self._begin(export, name)]

    def _begin(self, export: Export, name: str) -> Begin:
        self._state = _State.BEGUN
        contexts = self._contexts if self._contexts_of == name else ()  # H3
        return Begin(Session(export, self._structured, contexts))

    def _abort(self, option: int, _data: bytes) -> list[ServerEvent]:
        self._state = _State.CLOSED
        return [Send(pack_option_reply(option, p.REP_ACK)), Hangup()]

    def _list(self, option: int, data: bytes) -> list[ServerEvent]:
        _require_empty(data)
        replies = [
            pack_option_reply(option, p.REP_SERVER, pack_server(export.name, export.description))
            for export in self._exports.listed()
        ]
        return [_acknowledge(option, replies)]

    def _start_tls(self, option: int, data: bytes) -> list[ServerEvent]:
        _require_empty(data)
        if self._tls is Tls.NONE or not self._client_flags & p.FLAG_C_FIXED_NEWSTYLE:
            raise _RefusalError(p.REP_ERR_POLICY, "TLS is not set up here")
        if self._inside_tls:
            raise _RefusalError(p.REP_ERR_INVALID, "TLS is there already")
        self._state = _State.UPGRADE
        return [_acknowledge(option), StartTls()]

    def _structured_reply(self, option: int, data: bytes) -> list[ServerEvent]:
        _require_empty(data)
        if self._structured:
            raise _RefusalError(p.REP_ERR_INVALID, "structured replies are agreed on already")
        self._structured = True
        return [_acknowledge(option)]

    def _info(self, option: int, data: bytes) -> list[ServerEvent]:
        request = InfoRequest.unpack(data)
        export = self._found(request.name)
        return [
            _acknowledge(option, [pack_option_reply(option, p.REP_INFO, item) for item in self._items(request, export)])
        ]

    def _go(self, option: int, data: bytes) -> list[ServerEvent]:
        request = InfoRequest.unpack(data)
        export = self._found(request.name)
        items = [pack_option_reply(option, p.REP_INFO, item) for item in self._items(request, export)]
        return [_acknowledge(option, items), self._begin(export, request.name)]

    def _items(self, request: InfoRequest, export: Export) -> list[bytes]:
        """What INFO and GO tell: size and flags always, the rest to whoever asks."""
        items = [ExportInfo(export.size_bytes, export.transmission_flags(self._structured)).pack()]
        if p.INFO_NAME in request.items:
            items.append(TextInfo(p.INFO_NAME, export.name).pack())
        if p.INFO_DESCRIPTION in request.items and export.description:
            items.append(TextInfo(p.INFO_DESCRIPTION, export.description).pack())
        if p.INFO_BLOCK_SIZE in request.items:
            items.append(BlockSizeInfo(MINIMUM_BYTES, export.preferred_bytes, MAXIMUM_BYTES).pack())
        return items

    def _list_contexts(self, option: int, data: bytes) -> list[ServerEvent]:
        request = self._context_request(data)
        known = self._found(request.name).contexts
        names = [name for name in known if not request.queries or any(_lists(query, name) for query in request.queries)]
        return [_acknowledge(option, [_context_reply(option, 0, name) for name in names])]

    def _set_contexts(self, option: int, data: bytes) -> list[ServerEvent]:
        self._contexts = ()
        request = self._context_request(data)
        known = frozenset(self._found(request.name).contexts)
        names = [name for name in dict.fromkeys(request.queries) if name in known]
        if len(names) > p.MAX_CONTEXTS:
            raise _RefusalError(p.REP_ERR_TOO_BIG, f"at most {p.MAX_CONTEXTS} contexts at once")
        self._contexts = tuple(Context(number, name) for number, name in enumerate(names, 1))
        self._contexts_of = request.name
        return [_acknowledge(option, [_context_reply(option, c.context_id, c.name) for c in self._contexts])]

    def _context_request(self, data: bytes) -> ContextRequest:
        if not self._structured:
            raise _RefusalError(p.REP_ERR_INVALID, "metadata contexts need structured replies first")
        return ContextRequest.unpack(data)

    def _found(self, name: str) -> Export:
        export = self._exports.find(name)
        if export is None:
            raise _RefusalError(p.REP_ERR_UNKNOWN, f"no export {name!r} here"[: p.MAX_STRING_BYTES // 4])
        return export


def _acknowledge(option: int, replies: list[bytes] | None = None) -> Send:
    return Send(b"".join((*(replies or ()), pack_option_reply(option, p.REP_ACK))))


def _context_reply(option: int, context_id: int, name: str) -> bytes:
    return pack_option_reply(option, p.REP_META_CONTEXT, pack_context(context_id, name))


def _require_empty(data: bytes) -> None:
    if data:
        raise _RefusalError(p.REP_ERR_INVALID, f"this option has no data; {len(data)} bytes came")


def _lists(query: str, name: str) -> bool:
    """Whether a query of LIST_META_CONTEXT finds a context: its name, or a wildcard of its beginning."""
    return query == name or (query in ("base:", "replicator:", p.CHANGED_PREFIX) and name.startswith(query))
