"""ClientHandshake against bytes of a server, as the specification has them, and every way to be refused."""

from __future__ import annotations

import pytest

from replicator.errors import NotFoundError, ReplicatorError, UnavailableError
from replicator.nbd import protocol as p
from replicator.nbd.client import ClientEvent, ClientHandshake, ClientSession, Listed, Ready, Wish
from replicator.nbd.export import Context
from replicator.nbd.failures import NbdFormatError, NbdRefusedError
from replicator.nbd.handshake import Send, StartTls
from replicator.nbd.options import BlockSizeInfo, ExportInfo, TextInfo, pack_context, pack_option, pack_option_reply
from replicator.nbd.server import GREETING

OLD_GREETING = GREETING[:16] + b"\0\1"
OPT = "49484156454f5054"
FLAGS = Send(b"\0\0\0\3")
STRUCTURED = Send(bytes.fromhex(f"{OPT} 00000008 00000000"))
GO_DISK = Send(bytes.fromhex(f"{OPT} 00000007 00000010 00000004 6469736b 0003 0001 0002 0003"))
ABORT = Send(bytes.fromhex(f"{OPT} 00000002 00000000"))


def ack(option: int) -> bytes:
    return pack_option_reply(option, p.REP_ACK)


def info(data: bytes) -> bytes:
    return pack_option_reply(p.OPT_GO, p.REP_INFO, data)


EXPORT = info(ExportInfo(4096, 3).pack())


def told(wish: Wish, *messages: bytes) -> list[ClientEvent]:
    machine = ClientHandshake(wish)
    return [event for message in messages for event in machine.receive(message)]


def test_opening_with_everything() -> None:
    contexts = pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, pack_context(9, "base:allocation"))
    infos = info(TextInfo(p.INFO_DESCRIPTION, "words").pack()) + info(BlockSizeInfo(512, 4096, 65536).pack())
    events = told(
        Wish("disk", contexts=("base:allocation",)),
        GREETING,
        ack(p.OPT_STRUCTURED_REPLY),
        contexts + ack(p.OPT_SET_META_CONTEXT),
        infos + info(b"\0\x63unknown") + EXPORT + ack(p.OPT_GO),
    )
    session = ClientSession(
        4096, 3, True, (Context(9, "base:allocation"),), "", "words", BlockSizeInfo(512, 4096, 65536)
    )
    query = bytes.fromhex(f"{OPT} 0000000a 0000001f 00000004 6469736b 00000001 0000000f") + b"base:allocation"
    assert events == [FLAGS, STRUCTURED, Send(query), GO_DISK, Ready(session)]
    assert session.read_only and session.offers(p.TRANSMIT_HAS_FLAGS) and not session.offers(p.TRANSMIT_SEND_FLUSH)


def test_a_server_without_structured_replies() -> None:
    """No contexts are asked for then."""
    refusal = pack_option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUP)
    events = told(Wish("disk", contexts=("base:allocation",)), GREETING, refusal, EXPORT + ack(p.OPT_GO))
    assert events == [FLAGS, STRUCTURED, GO_DISK, Ready(ClientSession(4096, 3))]


@pytest.mark.parametrize(
    ("greeting", "flags", "zeroes"), [(GREETING, FLAGS, 0), (OLD_GREETING, Send(b"\0\0\0\1"), 124)]
)
def test_a_server_without_go(greeting: bytes, flags: Send, zeroes: int) -> None:
    refusal = pack_option_reply(p.OPT_GO, p.REP_ERR_UNSUP, b"what?")
    reply = bytes.fromhex("0000000000001000 0003") + bytes(zeroes)
    events = told(Wish("disk", structured=False), greeting, refusal, reply)
    by_name = Send(pack_option(p.OPT_EXPORT_NAME, b"disk"))
    assert events == [flags, GO_DISK, by_name, Ready(ClientSession(4096, 3))]


def test_listing() -> None:
    server = pack_option_reply(p.OPT_LIST, p.REP_SERVER, b"\0\0\0\1awords")
    events = told(Wish(listing=True), GREETING, server + server + ack(p.OPT_LIST))
    listed = Listed((("a", "words"), ("a", "words")))
    assert events == [FLAGS, Send(bytes.fromhex(f"{OPT} 00000003 00000000")), ABORT, listed]


def test_tls_comes_before_all_else() -> None:
    """C4."""
    machine = ClientHandshake(Wish("disk", tls=True, structured=False))
    starttls = Send(bytes.fromhex(f"{OPT} 00000005 00000000"))
    assert machine.receive(GREETING) == [FLAGS, starttls]
    assert machine.receive(ack(p.OPT_STARTTLS)) == [StartTls()]
    assert machine.tls_started() == [GO_DISK]
    assert machine.receive(EXPORT + ack(p.OPT_GO)) == [Ready(ClientSession(4096, 3))]


@pytest.mark.parametrize("split", [False, True])
def test_bytes_in_the_clear_behind_starttls(split: bool) -> None:
    """C2: what somebody put in front of the session isn't taken for the server's."""
    machine = ClientHandshake(Wish("disk", tls=True))
    machine.receive(GREETING)
    with pytest.raises(NbdFormatError):
        if split:
            machine.receive(ack(p.OPT_STARTTLS))
            machine.receive(b"x")
        else:
            machine.receive(ack(p.OPT_STARTTLS) + b"x")


@pytest.mark.parametrize(
    ("wish", "option", "reply", "error"),
    [
        (Wish("disk", tls=True), p.OPT_STARTTLS, p.REP_ERR_UNSUP, NbdRefusedError),
        (Wish("disk", tls=True), p.OPT_STARTTLS, p.REP_ERR_POLICY, NbdRefusedError),
        (Wish("disk"), p.OPT_STRUCTURED_REPLY, p.REP_ERR_TLS_REQD, NbdRefusedError),
        (Wish("disk", structured=False), p.OPT_GO, p.REP_ERR_TLS_REQD, NbdRefusedError),
        (Wish("disk", structured=False), p.OPT_GO, p.REP_ERR_UNKNOWN, NotFoundError),
        (Wish("disk", structured=False), p.OPT_GO, p.REP_ERR_SHUTDOWN, UnavailableError),
        (Wish("disk", structured=False), p.OPT_GO, p.REP_ERROR_BIT | 99, NbdRefusedError),
        (Wish("disk", structured=False), p.OPT_GO, p.REP_SERVER, NbdFormatError),
        (Wish(listing=True), p.OPT_LIST, p.REP_ERR_POLICY, NbdRefusedError),
        (Wish(listing=True), p.OPT_LIST, p.REP_META_CONTEXT, NbdFormatError),
    ],
)
def test_refusals(wish: Wish, option: int, reply: int, error: type[ReplicatorError]) -> None:
    with pytest.raises(error, match=r"because|reply"):
        told(wish, GREETING, pack_option_reply(option, reply, b"because"))


PLAIN = Wish("disk", structured=False)
BREACHES = [
    (PLAIN, bytes(18)),
    (PLAIN, GREETING[:8] + bytes.fromhex("00420281861253") + bytes(3)),
    (PLAIN, GREETING[:16] + b"\0\0"),
    (PLAIN, GREETING + bytes(20)),
    (PLAIN, GREETING + EXPORT + ack(p.OPT_INFO)),
    (PLAIN, GREETING + pack_option_reply(p.OPT_GO, p.REP_ACK, b"x")),
    (PLAIN, GREETING + ack(p.OPT_GO)),
    (PLAIN, GREETING + EXPORT + ack(p.OPT_GO) + b"x"),
    (PLAIN, GREETING + EXPORT * 65 + ack(p.OPT_GO)),
    (PLAIN, GREETING + pack_option_reply(p.OPT_GO, p.REP_INFO, bytes(65537))),
    (PLAIN, GREETING + info(b"")),
    (PLAIN, GREETING + info(b"\0\0short")),
    (PLAIN, GREETING + info(b"\0\1\xff")),
    (PLAIN, GREETING + info(ExportInfo(1 << 63, 1).pack()) + ack(p.OPT_GO)),
    (PLAIN, GREETING + info(BlockSizeInfo(0, 4096, 65536).pack())),
    (PLAIN, GREETING + info(BlockSizeInfo(3, 4096, 65536).pack())),
    (PLAIN, GREETING + info(BlockSizeInfo(512, 256, 65536).pack())),
    (PLAIN, GREETING + info(BlockSizeInfo(512, 4096, 1000).pack())),
    (PLAIN, GREETING + info(BlockSizeInfo(131072, 131072, 131072).pack())),
    (Wish(listing=True), GREETING + pack_option_reply(p.OPT_LIST, p.REP_SERVER, b"\0\0\0\2a")),
    (
        Wish("disk", contexts=("a:b",)),
        GREETING
        + ack(p.OPT_STRUCTURED_REPLY)
        + pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, pack_context(1, "c:d")),
    ),
    (
        Wish("disk", contexts=("a:b",)),
        GREETING
        + ack(p.OPT_STRUCTURED_REPLY)
        + pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, pack_context(1, "a:b")) * 2,
    ),
]


@pytest.mark.parametrize(("wish", "data"), BREACHES)
def test_breaches_of_the_protocol(wish: Wish, data: bytes) -> None:
    with pytest.raises(NbdFormatError):
        told(wish, data)


def test_an_endless_list_is_cut_off() -> None:
    """C3."""
    server = pack_option_reply(p.OPT_LIST, p.REP_SERVER, b"\0\0\0\1a")
    with pytest.raises(NbdFormatError):
        told(Wish(listing=True), GREETING, *[server * 1024] * 65)
