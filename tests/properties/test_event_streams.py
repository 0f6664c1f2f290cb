"""For all inputs: masks and frames carry any change exactly; any stream folds to one state, from any cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.events.bodies import TransactionAborted, VolumeRenamed
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.chunks import ChunksDiscarded
from replicator.events.codec import decode_event
from replicator.events.frames import Compressor, Decompressor, chunk_hash, written_events
from replicator.events.pages import apply_pages, changed_pages_many
from replicator.events.state import StreamState, decode_state, encode_state
from replicator.events.stream_errors import StreamConflictError, StreamDamageError
from replicator.log.interface import Appended
from replicator.log.object_log import ObjectLog
from replicator.units import CHUNK_BYTES, PAGE_BYTES
from tests.support.event_streams import VOLUME, Script, written
from tests.support.memory_objects import MemoryStore
from tests.support.packed_runs import pack_runs

CHUNKS = 12
steps = st.lists(
    st.sampled_from(["transaction", "open", "rename", "abort", "begin", "discard", "write", "commit"]), max_size=25
)


def play(names: list[str]) -> Script:
    """A valid stream: steps that don't fit the state are passed over."""
    script = Script().create()
    for chunk, name in enumerate(names, start=1):
        opened = script.state.open
        if name == "open":
            script.open()
        elif opened is None and name in ("transaction", "begin"):
            script.transaction(chunk) if name == "transaction" else script.begin()
        elif opened is None and name == "rename":
            script.put(VolumeRenamed(f"disk-{chunk}", chunk))
        elif opened and name == "abort":
            script.put(TransactionAborted(opened.number, opened.transaction, "why not"))
        elif opened and name == "discard" and opened.phase <= 2:
            script.put(ChunksDiscarded(pack_runs([(chunk, chunk + 1)])))
        elif opened and name == "write":
            script.put(written(chunk))
        elif opened and name == "commit":
            script.commit()
    return script


@given(st.lists(st.tuples(st.integers(0, CHUNKS * 16 - 1), st.binary(min_size=1, max_size=40)), max_size=60))
@settings(max_examples=60)
def test_frames_carry_any_change(writes: list[tuple[int, bytes]]) -> None:
    base = bytes(range(256)) * (CHUNKS * CHUNK_BYTES // 256)
    target = bytearray(base)
    for page, data in writes:
        target[page * PAGE_BYTES : page * PAGE_BYTES + len(data)] = data
    indices = np.arange(7, 7 + CHUNKS, dtype=np.uint64)
    replica = bytearray(base)
    for body in written_events(Compressor().pack(indices, changed_pages_many(base, target), target)):
        for chunk, mask, pages, digest in Decompressor().iter_chunks(body):
            begin = (chunk - 7) * CHUNK_BYTES
            content = replica[begin : begin + CHUNK_BYTES]
            apply_pages(content, mask, pages)
            assert chunk_hash(content) == digest
            replica[begin : begin + CHUNK_BYTES] = content
    assert replica == target


@given(steps, st.data())
@settings(max_examples=60)
def test_a_stream_folds_to_one_state_from_any_cut(names: list[str], data: st.DataObject) -> None:
    script = play(names)
    cut = data.draw(st.integers(0, len(script.events)))
    checker = ChainChecker(StreamState.start(VOLUME))
    for event in script.events[:cut]:
        assert checker.accept(decode_event(event.encoded)) is Verdict.APPLY
    resumed = ChainChecker(decode_state(encode_state(checker.state)))
    for event in script.events[cut:]:
        assert resumed.accept(event) is Verdict.APPLY
    assert resumed.state == script.state


@given(steps, st.lists(st.integers(0, 200), max_size=60))
@settings(max_examples=60)
def test_any_delivery_applies_each_event_once_in_order_or_stops(names: list[str], order: list[int]) -> None:
    """Whatever is lost, doubled or swapped on the way: what was applied is a prefix."""
    events = play(names).events
    checker = ChainChecker(StreamState.start(VOLUME))
    applied = []
    for i in order:
        event = events[i % len(events)]
        try:
            if checker.accept(event) is Verdict.APPLY:
                applied.append(event)
        except (StreamDamageError, StreamConflictError):
            break
    assert applied == events[: len(applied)]


@given(steps, st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(1, 80))
@settings(max_examples=60)
def test_a_log_gives_back_what_any_appends_gave(names: list[str], lengths: list[int], begin: int) -> None:
    script = play(names)
    events, store = list(script.events), MemoryStore()
    log = ObjectLog(store, create=True)
    with log.writer(VOLUME, 1) as writer:
        left = events
        while left:
            for length in lengths:
                assert isinstance(writer.append(writer.state.link, left[:length]), Appended)
                left = left[length:]
        assert isinstance(writer.sync(), Appended) and writer.durable == script.state
    reader = log.reader(VOLUME, 1)
    begin = min(begin, len(events))
    assert list(reader.read(begin)) == events[begin - 1 :]
    assert reader.tail() == script.state
