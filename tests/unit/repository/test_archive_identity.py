"""As whom an archive is registered: one UUID however it is named, and two archives never one."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import UsageError
from replicator.repository.archive_identity import archive_place, archive_uuid

ONE = """
kafka://b1:9092,b2:9093/site  kafka://b2:9093,B1/site?timeout=30s&tls=on   kafka://b1,b2:9093,b1/site/
s3://bucket/site              s3://bucket/site/?timeout=1m&region=eu       s3://bucket/site?profile=other
s3://bucket/a?endpoint=http://minio:9000  s3://bucket/a?endpoint=https://MINIO:9000/&virtual_hosted=true  s3://bucket/a?region=x&endpoint=http://minio:9000
ssh://one@host/srv/archive    ssh://two@HOST/srv/archive/                  ssh://host/srv/archive?ssh=my-ssh
ssh://me@host/~/archive       ssh://me@host/~/archive/                     ssh://me@host/~/archive?command=other
az://bucket/a?account=x       az://bucket/a?account=x&timeout=1m           az://bucket/a/?account=x
""".strip().splitlines()
OTHERS = """
kafka://b1/site  kafka://b1/other  kafka://b2/site  kafka://b1:9093/site  kafka://b1,b2/site
s3://bucket/a  s3://bucket  s3://bucket/b  gs://bucket/a  s3://bucket/a?endpoint=http://minio  s3://bucket/a?endpoint=http://minio:9000
az://bucket/a?account=x  az://bucket/a?account=y
ssh://host/srv/a  ssh://host:22/srv/a  ssh://other/srv/a  ssh://host/srv/b  ssh://me@host/~/a  ssh://you@host/~/a
""".strip().splitlines()


@pytest.mark.parametrize("line", ONE)
def test_options_and_keys_are_no_part_of_it(line: str) -> None:
    assert len({archive_uuid(url, here) for url in line.split() for here in ("alpha", "beta")}) == 1


def test_what_tells_archives_apart_is() -> None:
    urls = [url for line in OTHERS for url in line.split()]
    assert len({archive_place(url, "alpha") for url in urls}) == len(urls)


@pytest.mark.parametrize(
    "url",
    [
        "/srv/archive",
        "kafka://localhost:9092/site",
        "kafka://[::1]:9092/site",
        "s3://bucket/a?endpoint=http://127.0.0.1:9000",
        "ssh://localhost/srv/archive",
    ],
)
def test_what_each_machine_has_for_itself_goes_with_its_name(url: str) -> None:
    assert archive_uuid(url, "alpha") != archive_uuid(url, "beta")


def test_a_directory_is_one_from_wherever_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "an archive"
    archive.mkdir()
    (tmp_path / "link").symlink_to(archive)
    monkeypatch.chdir(tmp_path)
    named = [archive, f"file://{tmp_path}/an%20archive", "an archive", "./link", f"{archive}/../an archive/"]
    assert {archive_place(str(each), "alpha") for each in named} == {f"file://alpha{archive}"}
    monkeypatch.chdir(archive)
    assert archive_uuid("an archive", "alpha") != archive_uuid(str(archive), "alpha")


def test_a_name_that_is_no_text() -> None:
    assert archive_uuid("/srv/\udcff", "alpha") != archive_uuid("/srv/\udcfe", "alpha")


@pytest.mark.parametrize("url", ["", "a\0b", "ftp://host/a", "kafka://host", "s3://"])
def test_what_is_no_log(url: str) -> None:
    with pytest.raises(UsageError):
        archive_uuid(url, "alpha")
