"""`replicator status`: who registered is asked; worst first, dead ones passed over, exit 0 only if all is well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import ConflictError, NotFoundError, ReplicatorError, UnavailableError
from replicator.pool import daemons
from replicator.pool.daemons import DaemonSocket, ask
from replicator.pool.registrations import registered, registrations
from replicator.pool.sockets import connect
from tests.support.command_line import Command


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPLICATOR_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def daemon(tmp_path: Path, runtime: Path) -> Iterator[Any]:
    """Starts a daemon that says a severity of itself."""
    with ExitStack() as stack:

        def start(kind: str, name: str, severity: int | None, **more: Any) -> Path:
            pool = tmp_path / name
            pool.mkdir(exist_ok=True)
            answer = {"severity": severity, "headline": f"{name} says {severity}", **more}
            stack.enter_context(DaemonSocket(pool, kind, {"status": lambda _: answer}))
            stack.enter_context(registered(kind, pool, kind))
            return pool

        yield start


def test_none_runs(command: Command, runtime: Path) -> None:
    assert command("status", "--json").document == {"schema_version": 1, "ok": True, "severity": 0, "daemons": []}
    assert "no agent and no receiver runs here" in command("status").out


def test_worst_first_and_the_exit_code_says_whether_all_is_well(command: Command, daemon: Any) -> None:
    daemon("agent", "a", 0, volumes=[{"volume": "vm1", "headline": "PROTECTED", "mend": None}])
    assert command("status", "--json").document["ok"] is True
    assert "vm1: PROTECTED" in command("status").out
    daemon("receiver", "b", 2, mend="do this")
    daemon("agent", "c", 1)
    found = command("status", "--json", code=1).document
    assert [each["severity"] for each in found["daemons"]] == [2, 1, 0] and found["severity"] == 2
    assert [each["kind"] for each in found["daemons"]] == ["receiver", "agent", "agent"]
    shown = command("status", code=1).out
    assert shown.startswith("receiver") and "\n  do this\n" in shown


@pytest.mark.parametrize("severity", [None, 7, "fine"])
def test_a_daemon_that_says_nothing_sensible_isnt_well(command: Command, daemon: Any, severity: Any) -> None:
    daemon("agent", "a", severity)
    assert command("status", "--json", code=1).document["severity"] == 2


def test_stale_and_strange_registrations_are_passed_over(command: Command, tmp_path: Path, runtime: Path) -> None:
    pool = tmp_path / "p"
    pool.mkdir()
    with registered("agent", pool, "agent") as file, DaemonSocket(pool, "agent", {}):
        assert file is not None
        dead = file.read_bytes()
    assert not file.exists()
    file.write_bytes(dead)
    (runtime / "agent-x.json").write_text("{}")
    (runtime / "agent-y.json").write_bytes(b"\xff\xfe")
    (runtime / "agent-z.json").mkdir()
    assert [each.pool for each in registrations()] == [str(pool)]
    assert command("status", "--json").document["daemons"] == []


def test_a_daemon_that_fails_to_answer_isnt_well(command: Command, tmp_path: Path, runtime: Path) -> None:
    def broken(_: Any) -> Any:
        raise ReplicatorError("out of breath")

    with registered("agent", tmp_path, "agent"), DaemonSocket(tmp_path, "agent", {"status": broken}):
        found = command("status", "--json", code=1).document
    assert "out of breath" in found["daemons"][0]["headline"]


def test_a_restarted_daemon_replaces_its_registration(tmp_path: Path, runtime: Path) -> None:
    with registered("agent", tmp_path, "agent"), registered("agent", tmp_path, "agent"):
        assert len(registrations()) == 1
    assert registrations() == []


def test_no_place_to_register_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLICATOR_RUNTIME_DIR", str(tmp_path / "file" / "below"))
    with registered("agent", tmp_path, "agent") as file:
        assert file is None


def test_calls_answers_and_typed_errors_travel(tmp_path: Path) -> None:
    def refuse(_: Any) -> Any:
        raise NotFoundError("no such volume", mend="look again")

    with DaemonSocket(tmp_path, "agent", {"add": lambda given: {"sum": given["a"] + given["b"]}, "refuse": refuse}):
        assert ask(tmp_path, "agent", "add", a=2, b=3) == {"sum": 5}
        with pytest.raises(NotFoundError, match="no such volume") as refusal:
            ask(tmp_path, "agent", "refuse")
        assert refusal.value.mend == "look again"
        with pytest.raises(NotFoundError, match="knows no call 'dance'"):
            ask(tmp_path, "agent", "dance")
        with pytest.raises(ConflictError, match="another process listens"):
            DaemonSocket(tmp_path, "agent", {})
    with pytest.raises(UnavailableError):
        ask(tmp_path, "agent", "add", a=1, b=1)


def test_rubbish_ends_its_own_connection_only(tmp_path: Path) -> None:
    with DaemonSocket(tmp_path, "agent", {"ping": lambda _: {}}):
        for rubbish in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100):
            with connect(tmp_path, "agent", 5.0) as client:
                client.sendall(rubbish)
                client.settimeout(5.0)
                assert client.recv(1) == b""
        silent = [connect(tmp_path, "agent", 5.0) for _ in range(4)]
        assert ask(tmp_path, "agent", "ping") == {}
        for each in silent:
            each.close()


def test_more_clients_than_places_are_turned_away(tmp_path: Path) -> None:
    with DaemonSocket(tmp_path, "agent", {"ping": lambda _: {}}):
        held = [connect(tmp_path, "agent", 5.0) for _ in range(daemons.CONNECTIONS_LIMIT)]
        with pytest.raises(UnavailableError):
            ask(tmp_path, "agent", "ping")
        for each in held:
            each.close()


@pytest.mark.parametrize("severity", [0, 1, 2])
def test_every_status_ends_with_0_only_if_all_is_well(
    command: Command, pool: Path, runtime: Path, severity: int
) -> None:
    said = {"severity": severity, "headline": "x", "volumes": []}
    for name in ("agent", "receiver"):
        with registered(name, pool, name), DaemonSocket(pool, name, {"status": lambda _: said}):
            for words in ((name, "status", pool), ("status",)):
                assert command(*words, "--json", code=1 if severity else 0).document
    unheard = command("agent", "status", pool, "--json", code=1).document
    assert unheard["severity"] and not unheard["protected"]
    command("receiver", "status", pool, code=5)
