"""What is asked for and isn't there is told, with what there is: timelines, events, replicas, listeners."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Command
from tests.support.serve_process import serving


def test_a_timeline_or_an_event_that_a_volume_hasnt(command: Command, pool: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command("volume", "create", pool, "vm1", "--size", "1MiB")
    command("agent", "publish", pool, "--log", log)
    error = command("log", "show", log, "vm1", "--timeline", 9, "--json", code=5).error
    assert error["message"] == "vm1 has no timeline 9; there are: 1" and error["mend"] == "--timeline 1"
    events = command("log", "show", log, "vm1", "--timeline", 1, "--json").document
    last = events[-1]["sequence"]
    behind = command("log", "show", log, "vm1", "--from", last + 1)
    assert (behind.out, behind.err) == ("", f"timeline 1 of vm1 has no event {last + 1} yet\n")
    assert command("log", "show", log, "vm1", "--from", last + 1, "--json").document == []
    error = command("log", "show", log, "vm1", "--from", last + 2, "--json", code=5).error
    assert error["message"] == f"timeline 1 of vm1 has no event {last + 2}: the last one is {last}"


def test_a_pool_without_replicas_says_so_when_it_is_verified(command: Command, pool: Path, tmp_path: Path) -> None:
    command("volume", "create", pool, "vm1", "--size", "1MiB")
    command("agent", "publish", pool, "--log", tmp_path / "log")
    verify = ("receiver", "verify", pool, "--log", tmp_path / "log")
    assert command(*verify).out == f"{pool} has no replica with a point: there is nothing to verify\n"
    assert command(*verify, "--json").document["points"] == []


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["--tls-key", "k.pem"], "a certificate"),
        (["--tls-certificate", "c.pem"], "a key"),
        (["--tls-required"], "a certificate and a key"),
    ],
)
def test_tls_with_half_of_its_files_is_wrong_usage(
    command: Command, pool: Path, tmp_path: Path, given: list[str], missing: str
) -> None:
    listen = ["--listen", f"unix:{tmp_path}/nbd.sock"]
    for line in (
        ["serve", pool, *given],
        ["serve", pool, *listen, *given],
        ["agent", "run", pool, "--log", tmp_path / "log", *listen, *given],
    ):
        said = command(*line, code=2).err
        assert said == f"replicator: TLS needs {missing}\n  --tls-certificate FILE --tls-key FILE\n", line


def test_serve_without_a_listener_says_where_it_is_reached(pool: Path, tmp_path: Path) -> None:
    with serving(pool):
        said = pool.with_name(f"{pool.name}.log").read_text()
    assert said == f"listening at {pool / 'control'} for commands and agents; no NBD: add --listen ADDRESS\n"


def test_serve_without_a_volume_says_where_it_listens(command: Command, pool: Path, tmp_path: Path) -> None:
    listening = f"listening at unix:{tmp_path}/{{}}.sock; there is nothing to serve yet\n"
    with serving(pool, "--listen", f"unix:{tmp_path}/a.sock"):
        said = pool.with_name(f"{pool.name}.log").read_text()
        more = [part for name in "bc" for part in ("--listen", f"unix:{tmp_path}/{name}.sock")]
        assert command("serve", pool, *more).err == listening.format("b") + listening.format("c"), "beside its owner"
    assert said == listening.format("a")
