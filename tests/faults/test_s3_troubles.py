"""What goes wrong around a bucket while it is used: keys that change, words that are missing, names that aren't ours.

Each on a server of ours, by real requests: what was sent, and what is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from obstore.store import S3Store

from agent.append import LogAwayError, log_errors
from replicator.errors import UnavailableError
from replicator.log.object_log import ObjectLog
from replicator.log.opening import open_log
from replicator.log.s3 import BucketStore, Patience
from replicator.log.s3_errors import AccessDeniedError, BucketMissingError, ForeignKeyError
from replicator.log.s3_opening import open_bucket
from replicator.log.s3_url import parse_object_url
from tests.support.fake_s3 import BUCKET, FakeS3, S3Fault, fake_s3
from tests.support.far_logs import FarServers

QUICK = Patience(tries=3, in_all_s=5.0, first_wait_s=0.001, longest_wait_s=0.002, listing_s=0.5)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with fake_s3() as running:
        yield running


def store_of(fake: FakeS3, asked: str = "") -> BucketStore:
    return open_bucket(parse_object_url(fake.url("log") + asked), QUICK)


def write_keys(path: Path, key: str, token: str = "") -> None:
    rest = f"aws_session_token = {token}\n" if token else ""
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n{rest}")
    path.chmod(0o600)


@pytest.mark.parametrize("asked", ["credentials", "profile"])
def test_a_files_keys_go_without_anything_of_the_environments(
    asked: str, fake: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "file-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    store = store_of(fake, f"&credentials={keys}" if asked == "credentials" else "&profile=default")
    store.put("a", b"1")
    assert store.get("a", 10) == b"1" and fake.signers == [("file-key", "")] * 2


def test_the_environments_keys_go_with_the_environments_token(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    assert store_of(fake).get("a", 10) is None and fake.signers == [("env-key", "env-token")]


def test_a_token_that_is_rotated_in_its_file_is_taken(fake: FakeS3, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "one", "first")
    store = store_of(fake, f"&credentials={keys}")
    assert store.get("a", 10) is None
    write_keys(keys, "two", "second")
    assert store.get("a", 10) is None and fake.signers == [("one", "first"), ("two", "second")]


def test_a_keys_file_that_became_wrong_is_told_and_mended(fake: FakeS3, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "one")
    store = store_of(fake, f"&credentials={keys}")
    keys.chmod(0o644)
    with pytest.raises(AccessDeniedError, match="others may read it") as caught:
        store.get("a", 10)
    assert caught.value.mend and "read for each request" in caught.value.mend and not fake.requests
    keys.chmod(0o600)
    assert store.get("a", 10) is None


def test_why_a_head_was_refused_is_asked_for(fake: FakeS3) -> None:
    store = store_of(fake)
    fake.plan = lambda number, method, key: S3Fault.EXPIRED
    with pytest.raises(AccessDeniedError, match="ExpiredToken") as caught:
        store.size("a")
    assert caught.value.mend == "the session's token has expired: get a new one"
    assert [method for method, _ in fake.requests] == ["HEAD", "GET"]
    fake.plan = lambda number, method, key: S3Fault.DENIED if method == "HEAD" else None
    fake.objects["log/a"] = b"12345"
    assert store.size("a") == 5 and store.size("b") is None


def test_a_body_that_came_too_slowly_is_sent_again(fake: FakeS3) -> None:
    fake.plan = lambda number, method, key: S3Fault.STALLED if number == 1 else None
    store_of(fake).put("a", b"1")
    assert fake.objects == {"log/a": b"1"}


def test_a_small_read_has_the_small_limit() -> None:
    with ExitStack() as stack:
        ours = [stack.enter_context(fake_s3()) for _ in range(2)]
        small, bulk = (
            S3Store(
                BUCKET,
                endpoint=f"http://127.0.0.1:{fake.port}",
                region="us-east-1",
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            for fake in ours
        )
        store = BucketStore("s3://bucket", small, bulk, QUICK)
        assert store.get("marker", 64 << 10) is None and store.get("segment", 64 << 20) is None
        assert [fake.requests for fake in ours] == [[("GET", "marker")], [("GET", "segment")]]


def test_no_small_request_takes_longer_than_a_segment_may() -> None:
    for asked, limit in (("timeout=5s", "5s"), ("timeout=10m", "30s")):
        small = open_bucket(parse_object_url(f"s3://{BUCKET}/log?region=us-east-1&{asked}"))._small
        assert isinstance(small, S3Store) and small.client_options is not None
        assert str(small.client_options["timeout"]) == limit


def test_a_consoles_folder_is_no_name(fake: FakeS3) -> None:
    fake.objects["log/"] = b""
    open_log(fake.url("log"), create=True)
    fake.objects |= {"log/catalogue/": b"", "log/catalogue/a": b"", "log/catalogue/b/c": b""}
    assert sorted(store_of(fake).children("")) == ["catalogue", "replicator-log", "temporary"]
    assert sorted(store_of(fake).children("catalogue")) == ["a", "b"]


@pytest.mark.parametrize(("key", "told"), [("log//x", "log//"), ("log/../x", "log/../"), ("log/./x", "log/./")])
def test_a_key_that_no_listing_gets_past_is_named_with_its_mend(key: str, told: str, fake: FakeS3) -> None:
    fake.objects |= {"log/a": b"", key: b""}
    with pytest.raises(ForeignKeyError) as caught:
        store_of(fake).children("")
    assert repr(told) in caught.value.message and caught.value.mend and "remove the keys" in caught.value.mend
    assert len(fake.requests) == 1, "it isn't asked again in vain"
    del fake.objects[key]
    assert store_of(fake).children("") == ["a"]


def test_a_range_past_the_end_is_empty(fake: FakeS3, far_servers: FarServers) -> None:
    for store in (store_of(fake), open_bucket(parse_object_url(far_servers.s3_url("ranges")), QUICK)):
        store.put("a", b"12345")
        assert [store.get_range("a", at, 3) for at in (1, 4, 5, 6, 1 << 40)] == [b"234", b"5", b"", b"", b""]
        assert store.get_range("b", 5, 3) is None


def test_a_listing_without_an_end_ends(fake: FakeS3) -> None:
    fake.has_last_page = False
    with pytest.raises(UnavailableError, match="no end of it") as caught:
        store_of(fake).children("")
    assert caught.value.mend and "same pages" in caught.value.mend


def test_a_bucket_that_went_away_in_the_middle_is_waited_for(fake: FakeS3) -> None:
    log = ObjectLog(store_of(fake), create=True)
    fake.has_bucket = False
    with pytest.raises(LogAwayError, match="no such bucket any more"), log_errors():
        log.volumes()
    fake.has_bucket = True
    assert log.volumes() == []
    fake.has_bucket = False
    with pytest.raises(BucketMissingError):
        ObjectLog(store_of(fake), create=True)
