"""URLs of logs elsewhere: what they come to, what is refused and why; how fast each kind is written to."""

from __future__ import annotations

import shlex

import pytest

from replicator.errors import UsageError
from replicator.log.grammar import (
    is_object,
    is_owned,
    is_prefix,
    is_publishers,
    is_registration,
    is_segment,
    is_start,
)
from replicator.log.opening import is_log, log_folder, log_places, log_url
from replicator.log.pace import beacon_interval_s, default_interval_s
from replicator.log.s3_url import ObjectPlace, parse_object_url
from replicator.log.ssh_command import parse_ssh_url

UUID = "6f1c0000-0000-4000-8000-00000000cafe"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", ObjectPlace("s3", "bucket", "")),
        ("s3://bucket/a/b%20c/", ObjectPlace("s3", "bucket", "a/b c")),
        (
            "s3://bucket/log?endpoint=http://127.0.0.1:9000&region=eu-1&virtual_hosted=true&timeout=2m",
            ObjectPlace(
                "s3",
                "bucket",
                "log",
                endpoint="http://127.0.0.1:9000",
                region="eu-1",
                virtual_hosted=True,
                timeout_s=120,
            ),
        ),
        ("s3://bucket/x?profile=backup", ObjectPlace("s3", "bucket", "x", profile="backup")),
        ("gs://bucket/x?credentials=/etc/key.json", ObjectPlace("gs", "bucket", "x", credentials="/etc/key.json")),
        ("az://container/x?account=name", ObjectPlace("az", "container", "x", account="name")),
    ],
)
def test_object_urls(url: str, place: ObjectPlace) -> None:
    assert parse_object_url(url) == place
    assert "?" not in place.name and place.name.startswith(f"{place.scheme}://{place.bucket}")
    assert is_log(url) and log_url(url) == url and log_places(url) == ()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://", "no bucket"),
        ("s3://ab", "no bucket"),
        ("s3://key:secret@bucket/x", "holds no keys"),
        ("s3://bucket/a/../b", "no prefix"),
        ("s3://bucket/a//b", "no prefix"),
        ("s3://bucket/x?secret=1", "no parameter 'secret'"),
        ("s3://bucket/x?region=", "one value"),
        ("s3://bucket/x?region=a&region=b", "one value"),
        ("s3://bucket/x?endpoint=ftp://h", "an endpoint is"),
        ("s3://bucket/x?endpoint=http://key:secret@h", "an endpoint is"),
        ("s3://bucket/x?virtual_hosted=yes", "true or false"),
        ("s3://bucket/x?timeout=0s", "at least 1s"),
        ("s3://bucket/x?timeout=soon", "not a duration"),
        ("s3://bucket/x?credentials=keys", "absolute path"),
        ("s3://bucket/x#y", "may follow a #"),
        ("az://container/x", "account=NAME is missing"),
        ("s3://[/x", "names no log"),
    ],
)
def test_object_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason.replace("(", r"\(")) as caught:
        parse_object_url(url)
    assert "secret@" not in caught.value.message.replace("endpoint=http://key:secret@h", "")


def test_the_line_that_ssh_is_called_with() -> None:
    place = parse_ssh_url("ssh://backup@host.example:2222/srv/a%20log?command=/opt/r/bin/replicator")
    argv = place.argv()
    assert argv[0] == "ssh" and argv[-3:-1] == ["--", "backup@host.example"] and "BatchMode=yes" in argv
    assert argv[argv.index("-p") + 1] == "2222" and place.by_hand == "-p 2222 backup@host.example"
    assert shlex.split(argv[-1]) == ["/opt/r/bin/replicator", "log", "serve", "/srv/a log", "--stdio"]
    assert place.name == "ssh://backup@host.example:2222/srv/a log"


def test_parts_of_ssh_urls() -> None:
    assert parse_ssh_url("ssh://host/~/logs/a").path == "logs/a"
    assert parse_ssh_url("ssh://host/~/logs/a").name == "ssh://host/~/logs/a"
    assert parse_ssh_url("ssh://[::1]:22/x").destination == "::1"
    assert parse_ssh_url("ssh://host/x", "ssh -F none").ssh == ("ssh", "-F", "none")
    assert parse_ssh_url("ssh://host/x?ssh=ssh%20-i%20/k", "other").ssh == ("ssh", "-i", "/k")
    assert parse_ssh_url("ssh://host/x").port is None


@pytest.mark.parametrize(
    "url",
    [
        "ssh://host", "ssh://host/", "ssh:///x", "ssh://-oProxyCommand=x/y", "ssh://-x@host/y", "ssh://u:p@host/x",
        "ssh://host:99999/x", "ssh://host/a%0Ab", "ssh://host/x?shell=y", "ssh://host/x?command=", "ssh://ho st/x",
        "ssh://host/x?command=%22open", "ssh://host/x#y", "ssh://host/~/-rf",
        "ssh://host/\udcff", "ssh://host/a%FF", "ssh://host/x?command=%FF", "ssh://us%FFer@host/x",
        "ssh://host/x?ssh=\udcff",
    ],
)  # fmt: skip
def test_ssh_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="names no log") as caught:
        parse_ssh_url(url)
    assert caught.value.mend and "u:p" not in caught.value.message


def test_no_word_of_a_url_becomes_another_word_there() -> None:
    place = parse_ssh_url("ssh://host/x%3B%20touch%20y%60id%60?command=replicator%20%3B%20reboot")
    assert shlex.split(place.argv()[-1]) == ["replicator", ";", "reboot", "log", "serve", "/x; touch y`id`", "--stdio"]
    assert "'/x; touch y`id`'" in place.argv()[-1] and "';'" in place.argv()[-1]


def test_a_far_log_is_no_directory() -> None:
    with pytest.raises(UsageError, match="no directory"):
        log_folder("s3://bucket/x")
    assert log_places("/srv/log")[0].name == "log"


def test_pace() -> None:
    assert default_interval_s("s3://b/x") == 10 and beacon_interval_s("s3://b/x") == 60
    assert default_interval_s("az://b/x") == 10
    for url in ("/srv/log", "file:///srv/log", "ssh://host/x", "kafka://host/x"):
        assert default_interval_s(url) == 1 and beacon_interval_s(url) == 10


def test_the_grammar_of_names() -> None:
    segment = f"{UUID}/0000000001/0000000000000000/00000000000000000001"
    publishers, registration = {f"beacons/{UUID}", f"catalogue/{UUID}"}, f"receivers/{UUID}/{UUID}"
    start = f"{UUID}/0000000001/start"
    objects = {"replicator-log", segment, f"{UUID}/0000000001/claim", start, registration, *publishers}
    prefixes = {"", "catalogue", "beacons", "receivers", f"receivers/{UUID}", UUID, f"{UUID}/0000000001"}
    owned = {f"{UUID}/0000000001/", f"beacons/{UUID}", f"catalogue/{UUID}"}
    hostile = {"..", "../x", "/etc/passwd", f"{segment}/../x", f"{segment}\n", "temporary/x", "a" * 5000, f"{UUID}/"}
    for name in objects | prefixes | owned | hostile:
        assert is_object(name) == (name in objects)
        assert is_prefix(name) == (name in prefixes)
        assert is_publishers(name) == (name in publishers)
        assert is_registration(name) == (name == registration) and is_start(name) == (name == start)
        assert is_owned(name) == (name in owned) and is_segment(name) == (name == segment)
