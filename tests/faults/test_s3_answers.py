"""What an object store may answer: each request lost, done and lost, refused, busy; a store without conditional PUT.

Every fault at every request of a small life (open, publish three transactions, read): afterwards the log holds exactly
the events that were sent, in order, and what was answered stands (T1 to T3, L1 to L3).
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replicator.errors import NotFoundError, ReplicatorError, UnavailableError
from replicator.log.errors import PutUnknownError
from replicator.log.object_log import ObjectLog
from replicator.log.opening import open_log
from replicator.log.s3 import PROBE, BucketStore, Patience
from replicator.log.s3_errors import AccessDeniedError, BucketMissingError, UnsuitableStoreError
from replicator.log.s3_opening import open_bucket
from replicator.log.s3_url import parse_object_url
from tests.support.event_streams import VOLUME, Script
from tests.support.fake_s3 import FakeS3, S3Fault, fake_s3
from tests.support.far_logs import FarServers
from tests.support.resending import Resender

SEGMENTS = 3  # that a life puts, each at a commit
QUICK = Patience(tries=3, in_all_s=5.0, first_wait_s=0.001, longest_wait_s=0.002)
ONCE = Patience(tries=1, in_all_s=5.0, first_wait_s=0.001, longest_wait_s=0.002)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def store_of(fake: FakeS3, patience: Patience = QUICK) -> BucketStore:
    return open_bucket(parse_object_url(fake.url("log")), patience)


def live(fake: FakeS3, patience: Patience) -> tuple[Resender, int]:
    """Publish three transactions, come what may, and look at the log; the publisher, and how much it asked."""
    script = Script().create().transaction(1).transaction(2, 3).transaction(1)
    ends = [event.header.sequence for event in script.events if event.header.type == 8]
    sender = Resender(lambda: ObjectLog(store_of(fake, patience), create=True), script.events)
    for end in ends:
        sender.send(end)
    sender.close()
    asked = len(fake.requests)
    fake.plan = lambda number, method, key: None
    found = list(ObjectLog(store_of(fake)).reader(VOLUME, 1).read(1))
    assert found == script.events
    return sender, asked


@pytest.mark.parametrize("patience", [ONCE, QUICK], ids=["no retries", "retries"])
@pytest.mark.parametrize("fault", list(S3Fault), ids=lambda fault: fault.name)
def test_every_answer_at_every_request(fault: S3Fault, patience: Patience) -> None:
    with fake_s3() as healthy:
        _, count = live(healthy, patience)
    met = unknown = 0
    for at in range(1, count + 1):
        with fake_s3(plan=lambda number, method, key, at=at: fault if number == at else None) as fake:  # type: ignore[misc]  # a default binds it
            sender, _ = live(fake, patience)
        met += 1
        unknown += sender.unknowns
    print(f"{fault.name}: {met} requests, {unknown} appends of unknown outcome")
    if patience is ONCE and fault in (S3Fault.DROP_AFTER, S3Fault.BUSY_AFTER):
        assert unknown == SEGMENTS, "an answer that was lost after a put must be told as unknown"


def test_a_store_that_ignores_the_condition_is_refused() -> None:
    with fake_s3(ignores_conditions=True) as fake:
        with pytest.raises(UnsuitableStoreError, match="If-None-Match") as caught:
            open_log(fake.url("log"), create=True)
        assert caught.value.mend and "conditional PUT" in caught.value.mend
        assert set(fake.objects) == {f"log/{PROBE}"}, "nothing but the probe was put"


def test_a_log_that_moved_to_such_a_store_is_refused_before_the_first_put() -> None:
    with fake_s3() as fake:
        live(fake, QUICK)
        fake.ignores_conditions = True
        before = dict(fake.objects)
        log = open_log(fake.url("log"))
        writer = log.writer(VOLUME, 1)
        with pytest.raises(UnsuitableStoreError):
            writer.append(writer.state.link, Script(writer.state).open().events)
        assert fake.objects == before


def test_the_probe_is_asked_once_and_needs_no_deleting() -> None:
    with fake_s3() as fake:
        live(fake, QUICK)
        live_requests = [method for method, key in fake.requests if key.endswith(PROBE)]
        assert live_requests.count("DELETE") == 0 and live_requests.count("PUT") == 2
        assert not [key for method, key in fake.requests if method == "DELETE"]


def test_a_put_of_unknown_outcome_and_what_becomes_of_it() -> None:
    lost = threading.Event()

    def plan(number: int, method: str, key: str) -> S3Fault | None:
        return S3Fault.DROP_AFTER if key == "log/a" and method == "PUT" and not lost.is_set() else None

    with fake_s3(plan=plan) as fake:
        with pytest.raises(PutUnknownError, match="broke off; an earlier try"):
            store_of(fake).put_if_absent("a", b"mine")
        assert fake.objects["log/a"] == b"mine"
        lost.set()
        assert not store_of(fake).put_if_absent("a", b"other") and fake.objects["log/a"] == b"mine"


def refused(fake: FakeS3, bucket: str = "bucket") -> ReplicatorError:
    with pytest.raises(ReplicatorError) as caught:
        ObjectLog(open_bucket(parse_object_url(fake.url("log", bucket)), QUICK), create=True)
    return caught.value


def test_errors_are_told_apart(far_servers: FarServers) -> None:
    with fake_s3() as fake:
        missing = refused(fake, "other-bucket")
        assert isinstance(missing, NotFoundError | UnavailableError)
    with fake_s3(plan=lambda number, method, key: S3Fault.DENIED) as fake:
        denied = refused(fake)
        assert isinstance(denied, AccessDeniedError) and "AccessDenied" in denied.message and denied.mend
        assert len(fake.requests) == 1, "what is denied isn't asked again"
    away = refused(fake)
    assert type(away) is UnavailableError and "no connection" in away.message and away.mend
    url = far_servers.s3_url("x").replace("s3://bucket/", "s3://nobucket/")
    with pytest.raises(BucketMissingError, match="no such bucket") as caught:
        open_log(url, create=True)
    assert caught.value.mend and "make the bucket" in caught.value.mend
    with pytest.raises(NotFoundError, match="not a log") as absent:
        open_log(far_servers.s3_url("nothing-here"))
    assert absent.value.mend


def test_a_wrong_secret_is_told_as_such(far_servers: FarServers) -> None:
    url = far_servers.s3_url("x")
    assert far_servers.s3 is not None
    far_servers.s3.write_keys("wrong", "root-key", "not-the-secret")
    with pytest.raises(AccessDeniedError, match="SignatureDoesNotMatch") as caught:
        open_log(url.replace("root.keys", "wrong.keys"))
    assert caught.value.mend == "the secret doesn't belong to the key: give the right one"
    assert "not-the-secret" not in caught.value.message


def test_of_eight_writers_exactly_one_wins(far_servers: FarServers, tmp_path: Path) -> None:
    """T1, on a real server, small and large."""
    stores = [open_bucket(parse_object_url(far_servers.s3_url("race"))) for _ in range(8)]
    winners: list[int] = []

    def put(store: BucketStore, name: str, size: int, mine: int) -> bool:
        sink = store.create(name)
        sink.write([bytes([mine]) * size])
        return sink.commit()

    with ThreadPoolExecutor(8) as pool:
        for i in range(12):
            size = 64 if i % 3 else 5 << 20
            outcomes = list(pool.map(put, stores, [f"object{i}"] * 8, [size] * 8, range(8)))
            assert outcomes.count(True) == 1, f"round {i}: {outcomes}"
            content = stores[0].get(f"object{i}", size)
            assert content == bytes([outcomes.index(True)]) * size
            winners.append(outcomes.index(True))
    print(f"winners: {winners}")
