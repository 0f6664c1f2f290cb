"""`replicator init` and `replicator config`, for both hosts alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Command


@pytest.mark.parametrize("kind", ["agent", "receiver"])
def test_what_init_writes_is_a_configuration(command: Command, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"{kind}.toml"
    assert command("init", kind, "--to", file, "--json").document["file"] == str(file)
    text = file.read_text()
    assert text.count("#") > 5, "it is commented"
    assert command("config", "check", file, "--json").document == {
        "schema_version": 1,
        "file": str(file),
        "kind": kind,
        "ok": True,
    }
    effective = command("config", "show", "--effective", file, "--json").document["settings"]
    written = command("config", "show", file, "--json").document["settings"]
    assert set(written) < set(effective) or written.keys() - effective.keys()
    assert "pool = " in command("config", "show", "--effective", file).out


def test_init_never_overwrites(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("mine")
    assert command("init", "agent", "--to", file, "--json", code=4).error["kind"] == "conflict"
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["agent.toml"]
    command("init", "agent", "--to", tmp_path / "no" / "agent.toml", code=5)


def test_check_names_file_and_key(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    for text, expected in (("pool = 1", "pool"), ("this isn't toml", "TOML"), ('pool = "p"\nunheard = 1', "unheard")):
        file.write_text(text)
        message = command("config", "check", file, "--json", code=2).error["message"]
        assert expected in message and str(file) in message


def test_the_kind_is_in_the_name_or_said(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    command("init", "agent", "--to", file)
    assert "--for" in command("config", "check", file, "--json", code=2).error["mend"]
    assert command("config", "check", file, "--for", "agent", "--json").document["kind"] == "agent"
