"""ServerHandshake: what is answered to which bytes, both written out as the specification has them."""

from __future__ import annotations

import pytest

from replicator.nbd import protocol as p
from replicator.nbd.export import Context, Export, Session
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.handshake import Hangup, Send, StartTls, Tls
from replicator.nbd.options import ContextRequest, InfoRequest, pack_option
from replicator.nbd.server import GREETING, Begin, ServerEvent, ServerHandshake
from tests.support.nbd_server import MemoryExports

DISK = Export("disk", 1 << 20, description="words", snapshots=("monday", "tuesday"))
OTHER = Export("other", 4096, read_only=True)
FLAGS = bytes.fromhex("00000003")
OPT = "49484156454f5054"
REP = "0003e889045565a9"
STRUCTURED = bytes.fromhex(f"{OPT} 00000008 00000000")
STRUCTURED_ACK = bytes.fromhex(f"{REP} 00000008 00000001 00000000")
STARTTLS = bytes.fromhex(f"{OPT} 00000005 00000000")
STARTTLS_ACK = bytes.fromhex(f"{REP} 00000005 00000001 00000000")
LIST = bytes.fromhex(f"{OPT} 00000003 00000000")
GO_DISK = bytes.fromhex(f"{OPT} 00000007 0000000a 00000004 6469736b 0000")
GO_DISK_ACK = bytes.fromhex(
    f"{REP} 00000007 00000003 0000000c 0000 0000000000100000 0d6d {REP} 00000007 00000001 00000000"
)


def handshake(tls: Tls = Tls.NONE) -> ServerHandshake:
    return ServerHandshake(MemoryExports([DISK, OTHER]), tls)


def answers(*messages: bytes, tls: Tls = Tls.NONE, flags: bytes = FLAGS) -> list[ServerEvent]:
    machine = handshake(tls)
    assert machine.receive(flags) == []
    return [event for message in messages for event in machine.receive(message)]


def error_of(event: ServerEvent) -> int:
    """The type of an option reply that is nothing but an error."""
    assert isinstance(event, Send)
    assert int.from_bytes(event.data[16:20], "big") == len(event.data) - 20
    return int.from_bytes(event.data[12:16], "big")


def contexts_of(event: ServerEvent) -> list[tuple[int, str]]:
    """(id, name) of each context in a reply, up to its acknowledgement."""
    assert isinstance(event, Send)
    found, at = [], 0
    while event.data[at + 12 : at + 16] == b"\0\0\0\4":
        length = int.from_bytes(event.data[at + 16 : at + 20], "big")
        data = event.data[at + 20 : at + 20 + length]
        found.append((int.from_bytes(data[:4], "big"), data[4:].decode()))
        at += 20 + length
    assert event.data[at + 12 :] == b"\0\0\0\1\0\0\0\0"
    return found


def test_greeting() -> None:
    assert bytes.fromhex("4e42444d41474943 49484156454f5054 0003") == GREETING


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (STRUCTURED, STRUCTURED_ACK),
        (
            LIST,
            bytes.fromhex(
                f"{REP} 00000003 00000002 0000000d 00000004 6469736b 776f726473"
                f"{REP} 00000003 00000002 00000009 00000005 6f74686572"
                f"{REP} 00000003 00000001 00000000"
            ),
        ),
        (
            bytes.fromhex(f"{OPT} 00000006 00000010 00000004 6469736b 0003 0003 0002 0001"),
            bytes.fromhex(
                f"{REP} 00000006 00000003 0000000c 0000 0000000000100000 0d6d"
                f"{REP} 00000006 00000003 00000006 0001 6469736b"
                f"{REP} 00000006 00000003 00000007 0002 776f726473"
                f"{REP} 00000006 00000003 0000000e 0003 00000001 00010000 02000000"
                f"{REP} 00000006 00000001 00000000"
            ),
        ),
    ],
)
def test_options_and_their_replies(message: bytes, reply: bytes) -> None:
    assert answers(message) == [Send(reply)]


def test_go_begins() -> None:
    session = Session(DISK)
    machine = handshake()
    assert machine.receive(FLAGS + GO_DISK + b"first") == [Send(GO_DISK_ACK), Begin(session)]
    assert machine.receive(b" bytes") == [] and machine.leftover == b"first bytes"


def test_go_after_structured_replies_offers_df() -> None:
    events = answers(STRUCTURED, GO_DISK)
    assert events == [
        Send(STRUCTURED_ACK),
        Send(GO_DISK_ACK.replace(b"\x0d\x6d", b"\x0d\xed")),
        Begin(Session(DISK, structured=True)),
    ]


@pytest.mark.parametrize(("flags", "zeroes"), [(FLAGS, 0), (b"\0\0\0\1", 124), (b"\0\0\0\0", 124)])
def test_export_name(flags: bytes, zeroes: int) -> None:
    """The option of the old newstyle, also from a client that knows nothing else; "" is the default export."""
    reply = bytes.fromhex("0000000000001000 050f") + bytes(zeroes)
    assert answers(pack_option(p.OPT_EXPORT_NAME, b"other"), flags=flags) == [Send(reply), Begin(Session(OTHER))]
    (_, begun) = answers(pack_option(p.OPT_EXPORT_NAME), flags=flags)
    assert begun == Begin(Session(DISK))


@pytest.mark.parametrize("messages", [(pack_option(p.OPT_ABORT), GO_DISK), (pack_option(p.OPT_ABORT) + GO_DISK,)])
def test_abort(messages: tuple[bytes, ...]) -> None:
    """Nothing behind it is answered, whether it came in one piece with it or not."""
    assert answers(*messages) == [Send(bytes.fromhex(f"{REP} 00000002 00000001 00000000")), Hangup()]


@pytest.mark.parametrize(
    ("option", "data", "error"),
    [
        (4, b"", p.REP_ERR_UNSUP),
        (11, b"anything", p.REP_ERR_UNSUP),
        (0xFFFFFFFF, b"", p.REP_ERR_UNSUP),
        (p.OPT_STARTTLS, b"", p.REP_ERR_POLICY),
        (p.OPT_LIST, b"x", p.REP_ERR_INVALID),
        (p.OPT_STRUCTURED_REPLY, b"x", p.REP_ERR_INVALID),
        (p.OPT_GO, b"", p.REP_ERR_INVALID),
        (p.OPT_GO, b"\0\0\0\4disk", p.REP_ERR_INVALID),
        (p.OPT_GO, b"\0\0\0\4disk\0\0?", p.REP_ERR_INVALID),
        (p.OPT_GO, b"\0\0\0\4disk\0\1", p.REP_ERR_INVALID),
        (p.OPT_GO, b"\xff\xff\xff\xffdisk\0\0", p.REP_ERR_INVALID),
        (p.OPT_GO, b"\0\0\0\2\xc3\x28\0\0", p.REP_ERR_INVALID),
        (p.OPT_GO, b"\0\0\0\2a\0\0\0", p.REP_ERR_INVALID),
        (p.OPT_GO, InfoRequest("x" * 4097).pack(), p.REP_ERR_TOO_BIG),
        (p.OPT_GO, InfoRequest("unknown").pack(), p.REP_ERR_UNKNOWN),
        (p.OPT_INFO, InfoRequest("x" * 4096).pack(), p.REP_ERR_UNKNOWN),
        (p.OPT_LIST_META_CONTEXT, ContextRequest("disk").pack(), p.REP_ERR_INVALID),
        (p.OPT_SET_META_CONTEXT, ContextRequest("disk").pack(), p.REP_ERR_INVALID),
    ],
)
def test_refusals_leave_the_connection_usable(option: int, data: bytes, error: int) -> None:
    refusal, *rest = answers(pack_option(option, data), GO_DISK)
    assert error_of(refusal) == error
    assert rest == [Send(GO_DISK_ACK), Begin(Session(DISK))]


def test_structured_replies_are_agreed_on_once() -> None:
    assert error_of(answers(STRUCTURED, STRUCTURED)[1]) == p.REP_ERR_INVALID


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ((), DISK.contexts),
        (("base:",), ("base:allocation",)),
        (("replicator:",), DISK.contexts[1:]),
        (("replicator:changed:",), DISK.contexts[1:]),
        (("replicator:changed:monday", "base:allocation"), DISK.contexts[:2]),
        (("replicator:changed:mon", "qemu:", "nonsense", ""), ()),
    ],
)
def test_listing_contexts(queries: tuple[str, ...], names: tuple[str, ...]) -> None:
    message = pack_option(p.OPT_LIST_META_CONTEXT, ContextRequest("disk", queries).pack())
    assert contexts_of(answers(STRUCTURED, message)[1]) == [(0, name) for name in names]


def set_contexts(name: str, *queries: str) -> bytes:
    return pack_option(p.OPT_SET_META_CONTEXT, ContextRequest(name, queries).pack())


def test_contexts_set_twice() -> None:
    """The last set counts; wildcards and unknown names select nothing, names in the order of the queries."""
    first = set_contexts("disk", "base:allocation")
    second = set_contexts("disk", "base:", "replicator:changed:tuesday", "x:y", "base:allocation", "base:allocation")
    events = answers(STRUCTURED, first, second, GO_DISK)
    selected = (Context(1, "replicator:changed:tuesday"), Context(2, "base:allocation"))
    assert contexts_of(events[2]) == [(context.context_id, context.name) for context in selected]
    assert events[-1] == Begin(Session(DISK, True, selected))


@pytest.mark.parametrize("last", [set_contexts("disk"), set_contexts("unknown", "base:allocation")])
def test_contexts_dropped_again(last: bytes) -> None:
    """By an empty set, and by one that failed."""
    events = answers(STRUCTURED, set_contexts("disk", "base:allocation"), last, GO_DISK)
    assert events[-1] == Begin(Session(DISK, True))


def test_contexts_belong_to_their_export() -> None:
    """H3."""
    events = answers(STRUCTURED, set_contexts("other", "base:allocation"), GO_DISK)
    assert events[-1] == Begin(Session(DISK, True))


def test_more_contexts_than_one_connection_may_have() -> None:
    many = Export("many", 1, snapshots=tuple(f"s{number}" for number in range(100)))
    machine = ServerHandshake(MemoryExports([many]))
    events = machine.receive(FLAGS + STRUCTURED + set_contexts("many", *many.contexts))
    assert error_of(events[1]) == p.REP_ERR_TOO_BIG


# ---- TLS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_an_upgrade_forgets_what_was_agreed_on_before(tls: Tls) -> None:
    """H4; a second STARTTLS is refused inside."""
    machine = handshake(tls)
    before = STRUCTURED if tls is Tls.OFFERED else b""
    events = machine.receive(FLAGS + before + STARTTLS)
    assert events[-2:] == [Send(STARTTLS_ACK), StartTls()]
    machine.tls_started()
    assert error_of(machine.receive(STARTTLS)[0]) == p.REP_ERR_INVALID
    assert machine.receive(GO_DISK) == [Send(GO_DISK_ACK), Begin(Session(DISK))]


@pytest.mark.parametrize("message", [STRUCTURED, LIST, GO_DISK, pack_option(99), set_contexts("disk")])
def test_required_tls_comes_first(message: bytes) -> None:
    refusal, ack, upgrade = answers(message, STARTTLS, tls=Tls.REQUIRED)
    assert error_of(refusal) == p.REP_ERR_TLS_REQD
    assert (ack, upgrade) == (Send(STARTTLS_ACK), StartTls())


def test_required_tls_and_the_option_without_an_error_reply() -> None:
    (end,) = answers(pack_option(p.OPT_EXPORT_NAME, b"disk"), GO_DISK, tls=Tls.REQUIRED)
    assert isinstance(end, Hangup) and isinstance(end.error, NbdFormatError)


def test_required_tls_lets_a_client_go() -> None:
    assert answers(pack_option(p.OPT_ABORT), tls=Tls.REQUIRED)[-1] == Hangup()


def test_an_old_client_gets_no_tls() -> None:
    assert error_of(answers(STARTTLS, tls=Tls.OFFERED, flags=b"\0\0\0\2")[0]) == p.REP_ERR_POLICY


@pytest.mark.parametrize("split", [False, True])
def test_bytes_in_the_clear_behind_starttls_end_the_connection(split: bool) -> None:
    """Nobody's options, injected in front of a session, are believed inside it; and nothing is upgraded."""
    events = answers(STARTTLS, GO_DISK, tls=Tls.OFFERED) if split else answers(STARTTLS + GO_DISK, tls=Tls.OFFERED)
    assert events[0] == Send(STARTTLS_ACK) and isinstance(events[-1], Hangup) and events[-1].error is not None
    assert (StartTls() in events) == split


# ---- hostile clients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("00000004"),
        bytes.fromhex("80000003"),
        FLAGS + b"\0" * 16,
        FLAGS + bytes.fromhex("2560951300000000") + bytes(20),
        FLAGS + bytes.fromhex(f"{OPT} 00000007 00010001"),
        FLAGS + bytes.fromhex(f"{OPT} 00000063 ffffffff"),
        FLAGS + pack_option(p.OPT_EXPORT_NAME, b"unknown"),
        FLAGS + pack_option(p.OPT_EXPORT_NAME, b"\xff"),
        FLAGS + pack_option(p.OPT_EXPORT_NAME, b"x" * 5000),
        FLAGS + pack_option(99) * (p.MAX_OPTIONS + 1),
    ],
)
def test_what_ends_the_connection(data: bytes) -> None:
    """And afterwards nothing is answered any more."""
    machine = handshake()
    last = machine.receive(data)[-1]
    assert isinstance(last, Hangup) and isinstance(last.error, NbdFormatError)
    assert machine.receive(GO_DISK) == []


def test_pipelined_lists_dont_pile_up() -> None:
    """H2: who asks for the list again and again gets no more than 16 MiB and one list."""
    exports = MemoryExports([Export(f"disk{number}", 1, description="d" * 1000) for number in range(1000)])
    events = ServerHandshake(exports).receive(FLAGS + LIST * 1000)
    assert isinstance(events[-1], Hangup) and events[-1].error is not None
    assert sum(len(event.data) for event in events if isinstance(event, Send)) < 18 << 20
