"""For all inputs: any split of a byte stream gives the same result, both ends understand each other, values return."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from replicator.nbd import protocol as p
from replicator.nbd import reply as r
from replicator.nbd.client import ClientEvent, ClientHandshake, ClientSession, Listed, Ready, Wish
from replicator.nbd.coverage import Coverage
from replicator.nbd.export import Context, Export
from replicator.nbd.extents import merge_extents, pack_block_status, unpack_block_status
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.handshake import Send, StartTls, Tls
from replicator.nbd.options import ContextRequest, InfoRequest, pack_option
from replicator.nbd.reply_stream import Reply, ReplyStream
from replicator.nbd.request import Request, RequestFields, parse_requests
from replicator.nbd.server import GREETING, Begin, ServerEvent, ServerHandshake
from replicator.nbd.uri import NbdUri
from tests.support.nbd_server import MemoryExports

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
splits = st.lists(st.integers(0, 4000), max_size=8)
runs = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), max_size=30)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """`data` cut at these places."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return (data[begin:end] for begin, end in itertools.pairwise(places))


# ---- handshake ---------------------------------------------------------------------------------------------------

options = st.one_of(
    st.sampled_from([p.OPT_LIST, p.OPT_STRUCTURED_REPLY, p.OPT_ABORT, p.OPT_STARTTLS, 77]).map(pack_option),
    st.builds(lambda name: pack_option(p.OPT_GO, InfoRequest(name, (1, 2, 3)).pack()), st.sampled_from(["a", "", "x"])),
    st.builds(
        lambda option, query: pack_option(option, ContextRequest("a", (query,)).pack()),
        st.sampled_from([p.OPT_SET_META_CONTEXT, p.OPT_LIST_META_CONTEXT]),
        st.sampled_from(["base:", "base:allocation", "replicator:changed:s", ""]),
    ),
    st.builds(lambda name: pack_option(p.OPT_EXPORT_NAME, name), st.sampled_from([b"a", b"x"])),
    st.builds(pack_option, st.integers(0, 12), st.binary(max_size=30)),
    st.binary(max_size=20),
)


def served(parts: Iterator[bytes], tls: Tls) -> list[str]:
    machine = ServerHandshake(MemoryExports([Export("a", 9, snapshots=("s",))]), tls)
    events = [event for part in parts for event in machine.receive(part)]
    return [repr(event) for event in events if not isinstance(event, StartTls)]


@given(st.lists(options, max_size=8), splits, st.sampled_from(Tls))
def test_a_server_answers_the_same_however_its_input_is_split(messages: list[bytes], cuts: list[int], tls: Tls) -> None:
    """H1."""
    data = b"\0\0\0\3" + b"".join(messages)
    assert served(pieces(data, cuts), tls) == served(iter([data]), tls)


def negotiate(
    wish: Wish, exports: list[Export], tls: Tls, cuts: list[int]
) -> tuple[list[ServerEvent], list[ClientEvent]]:
    """Both ends until neither has more to say: the last words of each."""
    server, client = ServerHandshake(MemoryExports(exports), tls), ClientHandshake(wish)
    to_client = [GREETING]
    ends: list[ServerEvent] = []
    results: list[ClientEvent] = []
    while to_client:
        to_server: list[bytes] = []
        for part in (part for data in to_client for part in pieces(data, cuts)):
            for event in client.receive(part):
                events = client.tls_started() if isinstance(event, StartTls) else [event]
                results += [told for told in events if not isinstance(told, Send)]
                to_server += [told.data for told in events if isinstance(told, Send)]
        to_client = []
        for part in (part for data in to_server for part in pieces(data, cuts)):
            for answer in server.receive(part):
                if isinstance(answer, Send):
                    to_client.append(answer.data)
                elif isinstance(answer, StartTls):
                    server.tls_started()
                else:
                    ends.append(answer)
        if any(isinstance(result, Listed) for result in results):
            break
    return ends, results


@given(
    st.lists(st.builds(Export, names, st.integers(0, 1 << 62), st.booleans(), names, st.just(4096),
                       st.lists(names, max_size=3, unique=True).map(tuple)), min_size=1, max_size=4,
             unique_by=lambda export: export.name),
    st.booleans(), st.booleans(), splits, st.data(),
)  # fmt: skip
def test_both_ends_agree(
    exports: list[Export], tls: bool, structured: bool, cuts: list[int], data: st.DataObject
) -> None:
    """What the client believes to have opened is what the server serves."""
    export = data.draw(st.sampled_from(exports))
    contexts = tuple(data.draw(st.lists(st.sampled_from(export.contexts), unique=True)))
    wish = Wish(export.name, tls, structured, contexts)
    ends, results = negotiate(wish, exports, Tls.REQUIRED if tls else Tls.NONE, cuts)
    (begun,), (ready,) = ends, results
    assert isinstance(begun, Begin) and isinstance(ready, Ready)
    session, found = begun.session, ready.session
    assert session.export == export and session.structured == found.structured == structured
    assert session.contexts == found.contexts == (_numbered(contexts) if structured else ())
    expected = (export.size_bytes, export.transmission_flags(structured), export.name, export.description)
    assert (found.size_bytes, found.flags, found.name, found.description) == expected
    assert isinstance(found, ClientSession) and found.block_size.preferred_bytes == 4096


def _numbered(contexts: tuple[str, ...]) -> tuple[Context, ...]:
    return tuple(Context(number, name) for number, name in enumerate(contexts, 1))


@given(st.lists(names, min_size=1, max_size=5, unique=True), splits)
def test_lists_arrive(found: list[str], cuts: list[int]) -> None:
    exports = [Export(name, 1, description=name[::-1]) for name in found]
    _, results = negotiate(Wish(listing=True), exports, Tls.OFFERED, cuts)
    assert results == [Listed(tuple((name, name[::-1]) for name in found))]


@given(names, st.lists(names, max_size=5).map(tuple), st.lists(st.integers(0, 65535), max_size=5).map(tuple))
def test_option_data_returns(name: str, queries: tuple[str, ...], items: tuple[int, ...]) -> None:
    """O1."""
    assert InfoRequest.unpack(InfoRequest(name, items).pack()) == InfoRequest(name, items)
    assert ContextRequest.unpack(ContextRequest(name, queries).pack()) == ContextRequest(name, queries)


@given(names, st.one_of(st.tuples(st.none(), names.filter(bool)),
                        st.tuples(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True), st.none())),
       st.integers(1, 65535), st.booleans(), st.none() | names)  # fmt: skip
def test_uris_return(
    export: str, place: tuple[str | None, str | None], port: int, tls: bool, certificates: str | None
) -> None:
    """U2."""
    host, path = place
    uri = NbdUri(export, host, port if host else 10809, path, tls, certificates if tls else None)
    assert NbdUri.parse(str(uri)) == uri


# ---- transmission ------------------------------------------------------------------------------------------------

requests = st.builds(
    Request,
    st.integers(0, 8),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 300),
    st.integers(0, 31),
)


@given(st.lists(requests, max_size=12), splits)
def test_requests_parse_the_same_however_they_are_split(found: list[Request], cuts: list[int]) -> None:
    """R1."""
    data = b"".join(
        request.pack() + (b"d" * request.length_bytes if request.command == p.CMD_WRITE else b"") for request in found
    )
    kept, parsed = b"", []
    for part in pieces(data, cuts):
        kept += part
        batch: list[RequestFields] = []
        kept = kept[parse_requests(kept, 0, len(kept), batch) :]
        parsed += [fields[:4] for fields in batch]
    assert kept == b""
    assert parsed == [(q.flags << 16 | q.command, q.cookie, q.offset_bytes, q.length_bytes) for q in found]


@st.composite
def replies_to_reads(draw: st.DrawFn) -> tuple[list[Request], bytes, bytes, bool]:
    """Reads of one 64-byte disk, and a server's interleaved, shuffled chunks that answer them."""
    structured = draw(st.booleans())
    disk = bytes(range(64))
    reads, messages = [], []
    for cookie in range(draw(st.integers(1, 5))):
        begin = draw(st.integers(0, 63))
        end = draw(st.integers(begin + 1, 64))
        reads.append(Request(p.CMD_READ, cookie, begin, end - begin))
        if not structured:
            messages.append([r.pack_simple(cookie) + disk[begin:end]])
            continue
        cuts = sorted({begin, end, *draw(st.lists(st.integers(begin, end), max_size=4))})
        chunks = draw(st.permutations(list(itertools.pairwise(cuts))))
        data = [r.pack_data(cookie, low, high - low, done=False) + disk[low:high] for low, high in chunks]
        messages.append([*data, r.pack_none(cookie)])
    stream = []
    while waiting := [queue for queue in messages if queue]:
        stream.append(draw(st.sampled_from(waiting)).pop(0))
    return reads, b"".join(stream), disk, structured


@given(replies_to_reads(), splits)
def test_reads_are_put_together_however_they_come(
    case: tuple[list[Request], bytes, bytes, bool], cuts: list[int]
) -> None:
    """S1 to S3."""
    reads, data, disk, structured = case
    stream = ReplyStream(structured)
    for request in reads:
        stream.expect(request, bytearray(request.length_bytes))
    found: list[Reply] = []
    for part in pieces(data, cuts):
        stream.receive(part, found)
    assert stream.pending == () and len(found) == len(reads)
    for reply in found:
        begin = reply.request.offset_bytes
        assert bytes(reply.data) == disk[begin : begin + reply.request.length_bytes]


@given(st.lists(st.tuples(st.integers(-2, 20), st.integers(0, 8)), max_size=20))
def test_coverage_is_a_set_of_bytes(chunks: list[tuple[int, int]]) -> None:
    """V1, against a set."""
    coverage, covered = Coverage(3, 12), set[int]()
    for offset, length in chunks:
        wanted = set(range(offset, offset + length))
        fits = bool(wanted) and wanted <= set(range(3, 15)) and not wanted & covered
        try:
            coverage.add(offset, length)
            assert fits
            covered |= wanted
        except NbdFormatError:
            assert not fits
        assert coverage.complete == (len(covered) == 12)


@given(runs, st.integers(1, 100), st.integers(1, 8))
def test_extents_say_what_the_runs_say(found: list[tuple[int, int]], length: int, most: int) -> None:
    """E1 to E3, byte by byte."""
    flat = [flags for run_length, flags in found for _ in range(run_length)][:length]
    extents = merge_extents(found, length, most)
    told = [flags for extent_length, flags in extents for _ in range(extent_length)]
    assert told == flat[: len(told)] and len(extents) <= most
    assert len(extents) == most or len(told) == len(flat)
    assert all(before[1] != after[1] for before, after in itertools.pairwise(extents))
    if extents:
        packed = pack_block_status(1, [(4, found)], length, one=False)
        assert unpack_block_status(packed[20:], length) == (4, merge_extents(found, length))
