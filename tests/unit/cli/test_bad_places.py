"""Every command that takes a place, at places that are no pool and no log: refused with words, nothing written."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from replicator.cli.main import cli
from tests.support.command_line import Command, tree_of
from tests.unit.test_documented_commands import fault

AT_A_POOL = """
agent pause PLACE
agent publish PLACE --log LOG
agent publish PLACE --log LOG --label friday
agent rebase PLACE vm1 --from-log --yes
agent rebase PLACE vm1 --from-log --log LOG --yes
agent resume PLACE
agent run PLACE --log LOG --listen unix:SOCKET
agent run PLACE --log LOG
agent snapshot PLACE
agent status PLACE
agent stop PLACE
connect PLACE vm1 --for qemu
points create PLACE vm1 --label friday
points label PLACE vm1@1 friday
points list PLACE
points show PLACE vm1@1
pool check PLACE
pool dump PLACE
pool grow PLACE --data +1MiB
pool release-metadata-snap PLACE
pool mirror PLACE --to OUT
pool mirror PLACE --compare
pool mirror PLACE --drop
pool repair PLACE --dry-run
pool repair PLACE --to OUT
pool reserve-metadata-snap PLACE
pool status PLACE
receiver forget PLACE vm1 host
receiver run PLACE --log LOG
receiver run PLACE --log LOG --once
receiver status PLACE
receiver stop PLACE
receiver verify PLACE --log LOG
restore PLACE vm1@1 --to OUT
restore PLACE vm1@1 --to OUT --dry-run
serve PLACE --listen unix:SOCKET
serve PLACE vm1@1 --read-only --listen unix:SOCKET
volume clone PLACE vm1 vm2
volume create PLACE vm1 --size 1MiB
volume delete PLACE vm1 --yes
volume diff PLACE vm1 vm2
volume export PLACE vm1 OUT
volume import PLACE vm1 IMAGE
volume list PLACE
volume rename PLACE vm1 vm2
volume resize PLACE vm1 --size 2MiB --yes
volume rollback PLACE vm1 vm2 --yes
volume snapshot PLACE vm1 vm2
""".strip().splitlines()
AT_A_LOG = """
log archive PLACE OUT
log list PLACE
log show PLACE vm1
log verify PLACE
points list PLACE
restore PLACE vm1@1 --to OUT
serve PLACE vm1@1 --read-only --listen unix:SOCKET
receiver forget PLACE vm1 host
""".strip().splitlines()
ELSEWHERE = {
    "config check",
    "config show",
    "demo",
    "doctor",
    "init",
    "log serve",
    "pool create",
    "pool size-hint",
    "status",
}
PLACES = ("missing", "missing/deep", "empty", "file", "others", "noise", "named-noise", "zeros", "no-data")


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """A folder with one place of each kind, and an image to import."""
    for name in ("empty", "others", "noise", "named-noise", "zeros", "no-data"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "others" / "letter.txt").write_bytes(b"precious")
    for name, noise in (("noise", b"noise " * 4096), ("named-noise", b"noise " * 4096), ("zeros", bytes(1 << 16))):
        for part in ("metadata", "data", *(["catalog.db"] if name == "named-noise" else [])):
            (tmp_path / name / part).write_bytes(noise)
    (tmp_path / "no-data" / "metadata").write_bytes(b"noise " * 4096)
    (tmp_path / "image").write_bytes(bytes(4096))
    return tmp_path


def _words(line: str, ground: Path, place: str) -> list[str]:
    stand = {"PLACE": place, "LOG": "log", "OUT": "out", "SOCKET": "socket", "IMAGE": "image"}
    words = []
    for word in line.split():
        scheme, _, name = word.rpartition(":")
        words.append(f"{scheme}:{ground / stand[name]}".lstrip(":") if name in stand else word)
    return words


@pytest.mark.parametrize("line", dict.fromkeys(AT_A_POOL + AT_A_LOG))
def test_is_a_line_that_the_commands_take(line: str) -> None:
    """What is refused below is refused for its place: a wrong line ends with 2 everywhere, too."""
    assert fault(line.split(), whole=True) is None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("line", dict.fromkeys(AT_A_POOL + AT_A_LOG))
def test_is_refused_with_words_and_nothing_is_written(command: Command, ground: Path, place: str, line: str) -> None:
    before = tree_of(ground)
    ran = command(*_words(line, ground, place), code=None)
    assert ran.code in (1, 2, 3, 4, 5), ran
    assert "replicator: " in ran.err or (line == "pool check PLACE" and ran.code == 3), ran
    assert tree_of(ground) == before


def test_every_command_that_takes_a_place_is_tried() -> None:
    tried = {" ".join(line.split()[:2]) for line in AT_A_POOL + AT_A_LOG}
    for name, command in _commands():
        assert name in ELSEWHERE or any(
            each in (name, name.partition(" ")[0]) or each.startswith(name) for each in tried
        )
        assert command.help, name


def _commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    top = click.Context(cli, info_name="replicator")
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        inside = command.commands.items() if isinstance(command, click.Group) else ()
        found += [(f"{name} {verb}", each) for verb, each in inside] or [(name, command)]
    return found
