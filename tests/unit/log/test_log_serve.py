"""The server of an SSH log: what each kind of key may, what its folder is, and what the command refuses."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    ReplicatorError,
    UnavailableError,
    UsageError,
)
from replicator.events.beacon import Beacon
from replicator.events.record import RECORD_BYTES_MAX
from replicator.log import names
from replicator.log.interface import Appended, Registration
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.rights import Rights
from replicator.log.segment import SEGMENT_BYTES_MAX
from replicator.log.stdio_client import RemoteStore
from replicator.log.stdio_connection import Connection
from replicator.log.stdio_protocol import (
    _ERRORS,
    DATA_BYTES,
    TEXT_MAX,
    Kind,
    decode_failure,
    encode_body,
    encode_failure,
)
from tests.support.command_line import runner
from tests.support.event_streams import VOLUME, Script
from tests.support.loopback_store import LoopbackChannel, loopback_store

SEGMENT = names.segment_name(VOLUME, 1, 1)
REGISTRATION = Registration(VOLUME, UUID(int=7), "replica", 1, 2, 5, 99)


def published(store: RemoteStore, transactions: int = 2) -> Script:
    """A stream over `store`, with its beacon."""
    log = ObjectLog(store, create=True)
    script = Script().create()
    for i in range(transactions):
        script.transaction(i, i + 1)
    with log.writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.events), Appended)
    log.write_beacon(Beacon.of(script.state, 5, 10))
    log.write_beacon(Beacon.of(script.state, 6, 11))
    return script


def test_an_append_only_key_publishes_and_reads(tmp_path: Path) -> None:
    with closing(loopback_store(tmp_path / "log", Rights.APPEND)) as store:
        script = published(store)
        log = ObjectLog(store)
        assert list(log.reader(VOLUME, 1).read(1)) == script.events
        assert log.claim_timeline(VOLUME, 2, "beta") and not log.claim_timeline(VOLUME, 2, "gamma")
        assert store.connected().append_only and store.connected().path == str(tmp_path / "log")


def put_as_an_object(store: RemoteStore, name: str) -> None:
    """A name by way of a sink."""
    sink = store.create(name)
    sink.write([b"x"])
    sink.commit()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda store: store.put_if_absent(names.start_name(VOLUME, 1), b"x"),
        lambda store: put_as_an_object(store, names.start_name(VOLUME, 1)),
        lambda store: store.delete(SEGMENT),
        lambda store: store.put(SEGMENT, b"another history"),
        lambda store: store.put(names.start_name(VOLUME, 1), b"x"),
        lambda store: store.put(names.MARKER, b"x"),
        lambda store: store.put(names.claim_name(VOLUME, 1), b"x"),
        lambda store: store.delete(names.beacon_name(VOLUME)),
        lambda store: ObjectLog(store).register(REGISTRATION),
        lambda store: store.put_if_absent(names.registration_name(VOLUME, REGISTRATION.receiver), b"x"),
        lambda store: store.drop_folder(names.folder_name(VOLUME, 1, 0)),
        lambda store: ObjectLog(store).trim(VOLUME, 1, 1 << 40),
    ],
)
def test_an_append_only_key_erases_nothing(tmp_path: Path, wrong: object) -> None:
    with closing(loopback_store(tmp_path / "log", Rights.APPEND)) as store:
        script = published(store)
        assert callable(wrong)
        with pytest.raises(ConflictError, match="may only append") as caught:
            wrong(store)
        assert caught.value.mend and "--append-only" in caught.value.mend
        assert list(ObjectLog(store).reader(VOLUME, 1).read(1)) == script.events, "and the connection goes on"
    assert list(directory_log(tmp_path / "log").reader(VOLUME, 1).read(1)) == script.events


@pytest.mark.parametrize(
    "wrong",
    [
        lambda store: store.put_if_absent(names.start_name(VOLUME, 1), b"x"),
        lambda store: put_as_an_object(store, names.segment_name(VOLUME, 1, 1000)),
        lambda store: store.put(names.beacon_name(VOLUME), b"all is well"),
        lambda store: store.put(SEGMENT, b"another history"),
        lambda store: store.delete(SEGMENT),
        lambda store: store.drop_folder(names.folder_name(VOLUME, 1, 0)),
        lambda store: store.sweep(names.beacon_name(VOLUME)),
        lambda store: ObjectLog(store).claim_timeline(VOLUME, 2, "beta"),
        lambda store: ObjectLog(store).trim(VOLUME, 1, 1 << 40),
    ],
)
def test_a_follow_only_key_reads_registers_and_writes_no_history(tmp_path: Path, wrong: object) -> None:
    with closing(loopback_store(tmp_path / "log")) as store:
        script = published(store)
    with closing(loopback_store(tmp_path / "log", Rights.FOLLOW, create=False)) as store:
        log = ObjectLog(store)
        assert callable(wrong)
        with pytest.raises(ConflictError, match="may only follow") as caught:
            wrong(store)
        assert caught.value.mend and "--follow-only" in caught.value.mend
        assert list(log.reader(VOLUME, 1).read(1)) == script.events, "and the connection goes on"
        log.register(REGISTRATION)
        assert log.registrations(VOLUME) == [REGISTRATION]
        assert log.forget(VOLUME, REGISTRATION.receiver) and not log.registrations(VOLUME)


def test_a_follow_only_key_makes_no_log(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no log directory"):
        loopback_store(tmp_path / "log", Rights.FOLLOW).connected()
    assert not (tmp_path / "log").exists()


def test_a_full_key_trims(tmp_path: Path) -> None:
    with closing(loopback_store(tmp_path / "log")) as store:
        script = published(store, 4)
        assert ObjectLog(store).trim(VOLUME, 1, script.state.sequence) > 1


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "temporary/x", "a/../../x", "", "replicator-log/x"])
def test_names_never_lead_out(tmp_path: Path, name: str) -> None:
    with closing(loopback_store(tmp_path / "log")) as store:
        for ask in (store.size, store.delete, lambda each: store.put(each, b"x"), lambda each: store.get(each, 10)):
            with pytest.raises(FormatError, match="an object of a log"):
                ask(name)
        with pytest.raises(ReplicatorError):
            sink = store.create(name)
            sink.write([bytes(DATA_BYTES)])
            sink.commit()
    assert [each.name for each in tmp_path.rglob("*")] == ["log"]


def test_large_objects_cross_whole_and_bounded(tmp_path: Path) -> None:
    with closing(loopback_store(tmp_path / "log")) as store:
        ObjectLog(store, create=True)
        for size in (0, 1, DATA_BYTES - 1, DATA_BYTES, DATA_BYTES + 1, 3 * DATA_BYTES):
            name = names.segment_name(VOLUME, 1, size + 1)
            data = bytes(range(256)) * (size // 256) + bytes(size % 256)
            sink = store.create(name)
            sink.write([data[: size // 2], memoryview(data)[size // 2 :]])
            assert sink.commit()
            assert store.get(name, size) == data and store.size(name) == size
            assert store.get_range(name, size // 2, 10) == data[size // 2 :][:10]
            if size:
                with pytest.raises(FormatError, match=f"at most {size - 1} bytes, found {size}"):
                    store.get(name, size - 1)
        sink = store.create(SEGMENT)
        with pytest.raises(FormatError, match=f"at most {SEGMENT_BYTES_MAX}"):
            for _ in range(SEGMENT_BYTES_MAX // DATA_BYTES + 2):
                sink.write([bytes(DATA_BYTES)])
            sink.commit()
        assert store.size(SEGMENT) == 0, "the name of size 0 stands, and the one that was too long doesn't"
    assert not list((tmp_path / "log" / "temporary").iterdir())


def test_a_client_that_goes_leaves_nothing(tmp_path: Path) -> None:
    store = loopback_store(tmp_path / "log")
    ObjectLog(store, create=True)
    sink = store.create(SEGMENT)
    sink.write([bytes(3 * DATA_BYTES)])
    store.size(SEGMENT)
    assert len(list((tmp_path / "log" / "temporary").iterdir())) == 1
    store.close()
    assert not list((tmp_path / "log" / "temporary").iterdir())
    with pytest.raises(ReplicatorError, match="has fallen"):
        sink.commit()


def test_the_folder_that_a_key_reaches(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no log directory") as caught:
        loopback_store(tmp_path / "log", create=False).connected()
    assert caught.value.mend
    with pytest.raises(NotFoundError, match="no log directory"):
        loopback_store(tmp_path / "a" / "log").connected()
    with pytest.raises(ConflictError, match="was asked for") as conflict:
        Connection(LoopbackChannel(tmp_path / "log"), "x", str(tmp_path / "other"), create=True)
    assert "forced command" in str(conflict.value.mend) and not (tmp_path / "log").exists()


@pytest.mark.parametrize("create", [True, False])
def test_a_file_where_the_folder_should_be(tmp_path: Path, create: bool) -> None:
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(ConflictError, match="log is no directory") as caught:
        loopback_store(tmp_path / "log", create=create).connected()
    assert caught.value.mend


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 300)
    with pytest.raises(UnavailableError, match=f"log directory {root}: .*too long") as caught:
        loopback_store(root).connected()
    assert "by hand" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("rights", "name"),
    [
        (Rights.FOLLOW, names.registration_name(VOLUME, REGISTRATION.receiver)),
        (Rights.APPEND, names.beacon_name(VOLUME)),
        (Rights.APPEND, names.catalogue_name(VOLUME)),
        (Rights.APPEND, names.claim_name(VOLUME, 2)),
        (Rights.ALL, names.start_name(VOLUME, 1)),
    ],
)
def test_what_is_no_segment_is_small(tmp_path: Path, rights: Rights, name: str) -> None:
    directory_log(tmp_path / "log", create=True)
    with closing(loopback_store(tmp_path / "log", rights)) as store:
        sink = store.create(name)
        with pytest.raises(FormatError, match=f"at most {RECORD_BYTES_MAX} bytes"):
            for _ in range(RECORD_BYTES_MAX // 1024 + 1):
                sink.write([bytes(1024)])
            sink.commit()
        store.close()  # that server has ended itself
        for put in (store.put_if_absent, store.put):
            with pytest.raises(ReplicatorError, match=f"at most {RECORD_BYTES_MAX} bytes|may only append"):
                put(name, bytes(RECORD_BYTES_MAX + 1))
        assert store.size(name) is None
        sink = store.create(name)
        sink.write([bytes(RECORD_BYTES_MAX)])
        assert sink.commit() and store.size(name) == RECORD_BYTES_MAX


def test_a_failure_crosses_whatever_its_text_is(tmp_path: Path) -> None:
    hostile = "a\udcff\x1b]0;title\a\n\u202ec\r" + "y" * TEXT_MAX
    error = decode_failure(encode_failure(ConflictError(hostile, mend=hostile)), "far")
    assert type(error) is ConflictError and error.message.startswith(r"far: a\udcff ]0;title")
    for text in (error.message, error.mend or ""):
        assert text.isprintable() and len(text) <= TEXT_MAX + len("far: ")
    raw = encode_body(Kind.FAILED, "format", "x\x9b2J", "y" * 60_000)
    told = decode_failure(raw, "far")
    assert isinstance(told, FormatError) and told.message.isprintable() and len(told.mend or "") == TEXT_MAX


@pytest.mark.parametrize("kind", _ERRORS)
def test_a_failure_is_of_one_type_at_both_ends(kind: type[ReplicatorError]) -> None:
    error = decode_failure(encode_failure(kind("told", mend="mended")), "far")
    assert type(error) is kind and (error.message, error.mend) == ("far: told", "mended")


def test_a_served_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    root = tmp_path / "log\udcff"
    assert Connection(LoopbackChannel(root), "far:", "", create=True).path.endswith(r"/log\udcff")
    with pytest.raises(ConflictError, match=r"reaches the log .*/log\\udcff, and /other"):
        Connection(LoopbackChannel(root), "far:", "/other", create=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = runner(capsys)
    assert "--stdio" in command("log", "serve", tmp_path, code=UsageError.exit_code).err
    told = command("log", "serve", "--help").out
    assert "--append-only" in told and "--follow-only" in told
    both = command("log", "serve", tmp_path, "--stdio", "--append-only", "--follow-only", code=UsageError.exit_code)
    assert "two keys" in both.err
