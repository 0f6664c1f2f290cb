"""ClientHandshake: the way from a server's greeting to an opened export, or to the list of its exports.

    greeting                       fixed newstyle, or the server is too old
    STARTTLS                       if `tls`: then everything else inside it, or nothing at all
    STRUCTURED_REPLY               if `structured`; a server without them is as good
    SET_META_CONTEXT               if `contexts`, and structured replies were granted
    GO, else EXPORT_NAME           EXPORT_NAME only where GO is unknown (ERR_UNSUP)       -> Ready(session)
    or LIST, ABORT                 if `listing`                                           -> Listed(exports)

Written as one coroutine that waits for bytes by `yield`: the order above is the order of its lines.

Invariants
  C1  However the stream is split, the events are the same.
  C2  A reply is read only after its option was sent, and answers that option; nothing may follow the last one,
      nor come in the clear behind the answer to STARTTLS.
  C3  At most one reply (64 KiB) is kept, and 65,536 names of a list.
  C4  With `tls`, no name of an export is sent in the clear, whatever the server answers.

Failures: NbdFormatError for bytes that aren't the protocol; NotFoundError for an unknown export; NbdRefusedError for
TLS that is missing on one side, and for every other refusal; UnavailableError where the server shuts down.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from replicator._buffer import Buffer
from replicator.errors import NotFoundError, UnavailableError
from replicator.nbd import protocol as p
from replicator.nbd.export import Context
from replicator.nbd.failures import NbdFormatError, NbdRefusedError
from replicator.nbd.handshake import Send, StartTls
from replicator.nbd.options import (
    OPTION_REPLY,
    BlockSizeInfo,
    ContextRequest,
    ExportInfo,
    InfoRequest,
    TextInfo,
    pack_option,
    unpack_context,
    unpack_info,
    unpack_server,
)

_GREETING = struct.Struct("!QQH")
_OLD_EXPORT = struct.Struct("!QH")
_MAX_INFOS = 64  # items of one GO reply: there are four kinds
_ITEMS = (p.INFO_NAME, p.INFO_DESCRIPTION, p.INFO_BLOCK_SIZE)
_Waiting: TypeAlias = Generator[None, None, None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants of a server."""

    export: str = ""
    tls: bool = False
    structured: bool = True
    contexts: tuple[str, ...] = ()
    listing: bool = False


@dataclass(frozen=True, slots=True)
class ClientSession:
    """What client and server agreed on, and what the server told about its export."""

    size_bytes: int
    flags: int
    structured: bool = False
    contexts: tuple[Context, ...] = ()
    name: str = ""
    description: str = ""
    block_size: BlockSizeInfo = field(default_factory=BlockSizeInfo)

    @property
    def read_only(self) -> bool:
        """Whether the server takes no writes."""
        return self.offers(p.TRANSMIT_READ_ONLY)

    def offers(self, flags: int) -> bool:
        """Whether all of these TRANSMIT_* flags were sent with the export."""
        return self.flags & flags == flags


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is over: requests may be sent."""

    session: ClientSession


@dataclass(frozen=True, slots=True)
class Listed:
    """The exports of the server, as (name, description); the connection is over."""

    exports: tuple[tuple[str, str], ...]


ClientEvent: TypeAlias = Send | StartTls | Ready | Listed


class ClientHandshake:
    """One connection's handshake, client's side; feed what arrives, act on the events."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._buffer = bytearray()
        self._events: list[ClientEvent] = []
        self._upgrading = False
        self._finished = False
        self._no_zeroes = False
        self._script = self._run()
        next(self._script)

    def receive(self, data: Buffer) -> list[ClientEvent]:
        """What to do about `data`, in order."""
        if data and (self._finished or self._upgrading):
            where = "behind the handshake" if self._finished else "in the clear behind STARTTLS"
            raise NbdFormatError("NBD handshake", f"nothing {where}", f"{len(data)} bytes")  # C2
        self._buffer += data
        return self._go_on()

    def tls_started(self) -> list[ClientEvent]:
        """The socket speaks TLS now; what to send inside it."""
        assert self._upgrading
        self._upgrading = False
        return self._go_on()

    def _go_on(self) -> list[ClientEvent]:
        next(self._script, None)
        events, self._events = self._events, []
        return events

    def _run(self) -> _Waiting:
        yield from self._greet()
        if self._wish.tls:
            yield from self._upgrade()
        if self._wish.listing:
            yield from self._list()
        else:
            yield from self._open()
        self._finished = True
        if self._buffer:
            raise NbdFormatError("NBD handshake", "nothing behind it", f"{len(self._buffer)} bytes")  # C2

    def _greet(self) -> _Waiting:
        init, magic, flags = _GREETING.unpack((yield from self._take(_GREETING.size)))
        if init != p.INIT_MAGIC or magic != p.OPTION_MAGIC:
            expected = f"{p.INIT_MAGIC:#x} {p.OPTION_MAGIC:#x}"
            raise NbdFormatError("NBD greeting", expected, f"{init:#x} {magic:#x}")
        if not flags & p.FLAG_FIXED_NEWSTYLE:
            raise NbdFormatError("NBD greeting", "a server of the fixed newstyle", f"flags {flags:#x}")
        self._no_zeroes = bool(flags & p.FLAG_NO_ZEROES)
        answer = p.FLAG_C_FIXED_NEWSTYLE | (p.FLAG_C_NO_ZEROES if self._no_zeroes else 0)
        self._events.append(Send(struct.pack("!I", answer)))

    def _upgrade(self) -> _Waiting:
        reply, data = yield from self._ask(p.OPT_STARTTLS)
        if reply != p.REP_ACK:
            self._refuse("TLS", reply, data)  # C4
        if self._buffer:
            raise NbdFormatError("NBD handshake", "nothing in the clear behind STARTTLS", f"{len(self._buffer)} bytes")
        self._events.append(StartTls())
        self._upgrading = True
        while self._upgrading:
            yield

    def _list(self) -> _Waiting:
        exports: list[tuple[str, str]] = []
        reply, data = yield from self._ask(p.OPT_LIST)
        while reply == p.REP_SERVER:
            exports.append(unpack_server(data))
            if len(exports) > p.MAX_LISTED:
                raise NbdFormatError("NBD list of exports", f"at most {p.MAX_LISTED}", "one more")
            reply, data = yield from self._reply(p.OPT_LIST)
        if reply != p.REP_ACK:
            self._refuse("the list of exports", reply, data)
        self._events += (Send(pack_option(p.OPT_ABORT)), Listed(tuple(exports)))

    def _open(self) -> _Waiting:
        structured = False
        if self._wish.structured:
            reply, data = yield from self._ask(p.OPT_STRUCTURED_REPLY)
            structured = reply == p.REP_ACK
            if reply == p.REP_ERR_TLS_REQD:
                self._refuse("an option without TLS", reply, data)
        contexts: tuple[Context, ...] = ()
        if structured and self._wish.contexts:
            contexts = yield from self._select_contexts()
        yield from self._open_with(structured, contexts)

    def _select_contexts(self) -> Generator[None, None, tuple[Context, ...]]:
        contexts: dict[int, Context] = {}
        request = ContextRequest(self._wish.export, self._wish.contexts).pack()
        reply, data = yield from self._ask(p.OPT_SET_META_CONTEXT, request)
        while reply == p.REP_META_CONTEXT:
            context = Context(*unpack_context(data))
            if context.context_id in contexts or context.name not in self._wish.contexts:
                raise NbdFormatError("NBD metadata context", "one that was asked for, once", repr(context))
            contexts[context.context_id] = context
            reply, data = yield from self._reply(p.OPT_SET_META_CONTEXT)
        if reply not in (p.REP_ACK, p.REP_ERR_UNSUP):
            self._refuse(f"metadata contexts of export {self._wish.export!r}", reply, data)
        return tuple(contexts.values()) if reply == p.REP_ACK else ()

    def _open_with(self, structured: bool, contexts: tuple[Context, ...]) -> _Waiting:
        infos: list[ExportInfo | BlockSizeInfo | TextInfo] = []
        reply, data = yield from self._ask(p.OPT_GO, InfoRequest(self._wish.export, _ITEMS).pack())
        for _ in range(_MAX_INFOS):
            if reply != p.REP_INFO:
                break
            if (info := unpack_info(data)) is not None:
                infos.append(info)
            reply, data = yield from self._reply(p.OPT_GO)
        if reply == p.REP_ERR_UNSUP:
            infos = [(yield from self._open_by_name())]
        elif reply != p.REP_ACK:
            self._refuse(f"export {self._wish.export!r}", reply, data)
        self._events.append(Ready(_session(infos, structured, contexts)))

    def _open_by_name(self) -> Generator[None, None, ExportInfo]:
        self._events.append(Send(pack_option(p.OPT_EXPORT_NAME, self._wish.export.encode())))
        size, flags = _OLD_EXPORT.unpack((yield from self._take(_OLD_EXPORT.size)))
        if not self._no_zeroes:
            yield from self._take(p.EXPORT_NAME_ZEROES)
        return ExportInfo(size, flags)

    def _ask(self, option: int, data: bytes = b"") -> Generator[None, None, tuple[int, bytes]]:
        self._events.append(Send(pack_option(option, data)))
        return (yield from self._reply(option))

    def _reply(self, option: int) -> Generator[None, None, tuple[int, bytes]]:
        magic, answered, reply, length = OPTION_REPLY.unpack((yield from self._take(OPTION_REPLY.size)))
        if magic != p.OPTION_REPLY_MAGIC or answered != option:
            expected = f"magic {p.OPTION_REPLY_MAGIC:#x} and option {option}"
            raise NbdFormatError("NBD option reply", expected, f"{magic:#x} and {answered}")
        if length > p.MAX_OPTION_BYTES or (reply == p.REP_ACK and length):
            raise NbdFormatError(f"NBD option reply {reply:#x}", f"at most {p.MAX_OPTION_BYTES} bytes", f"{length}")
        return reply, (yield from self._take(length))

    def _take(self, length: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < length:
            yield
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _refuse(self, what: str, reply: int, data: bytes) -> NoReturn:
        """Raise what an error reply means; an answer that is no error at all is a breach of the protocol."""
        if not reply & p.REP_ERROR_BIT:
            raise NbdFormatError("NBD option reply", "an acknowledgement or an error", f"type {reply}")
        words = data.decode(errors="replace")[: p.MAX_STRING_BYTES] or f"error {reply & ~p.REP_ERROR_BIT}"
        if reply == p.REP_ERR_UNKNOWN:
            raise NotFoundError(f"the NBD server has no {what}: {words}")
        if reply == p.REP_ERR_SHUTDOWN:
            raise UnavailableError(f"the NBD server is shutting down: {words}")
        mend = "use an nbds:// URI" if reply == p.REP_ERR_TLS_REQD else None
        raise NbdRefusedError(f"the NBD server refused {what}: {words}", reply, mend=mend)


def _session(
    infos: list[ExportInfo | BlockSizeInfo | TextInfo], structured: bool, contexts: tuple[Context, ...]
) -> ClientSession:
    """The items of a GO reply as one value; the later one of a kind counts."""
    export: ExportInfo | None = None
    block_size = BlockSizeInfo()
    texts: dict[int, str] = {}
    for info in infos:
        if isinstance(info, ExportInfo):
            export = info
        elif isinstance(info, BlockSizeInfo):
            block_size = info
        else:
            texts[info.item] = info.text
    if export is None or export.size_bytes >= 1 << 63:
        raise NbdFormatError("NBD export", "a size below 8 EiB", "none" if export is None else f"{export.size_bytes}")
    return ClientSession(
        export.size_bytes,
        export.flags,
        structured,
        contexts,
        texts.get(p.INFO_NAME, ""),
        texts.get(p.INFO_DESCRIPTION, ""),
        block_size,
    )
