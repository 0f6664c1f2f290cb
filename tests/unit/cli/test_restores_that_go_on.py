"""What `restore` tells while it works, and how one that ended early goes on: by a command that names the very point."""

from __future__ import annotations

import random
import shlex
from functools import partial
from pathlib import Path

import pytest

from replicator.cli.restore import _again, _Bars, _told_how_it_goes_on
from replicator.errors import DamageError, ReplicatorError, UnavailableError, UsageError
from replicator.log.object_log import directory_log
from replicator.repository.readback import ChangedSinceError, NotAsWrittenError
from replicator.repository.restore import plan_restore
from replicator.repository.resume import partial_path, state_path
from replicator.repository.source import open_source
from replicator.units import CHUNK_BYTES
from tests.support.command_line import Command
from tests.support.faulty_files import CrashError
from tests.support.file_limits import files_end_at
from tests.support.kept_points import pool_with_point
from tests.support.pool_owner import served
from tests.support.restoring import NOW_NS, go, loop_device
from tests.support.terminals import shown_on_terminal
from tests.support.volume_histories import NAME, History

SIZE = 10 * CHUNK_BYTES
ALONE = "no receiver or agent can be started on it"


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A log of one transaction, which others may follow."""
    made = History(directory_log(tmp_path / "log", create=True), random.Random(3), SIZE)
    made.write(0, random.Random(1).randbytes(SIZE))
    return made


def interrupted(log: Path, to: Path, at: int = 6) -> None:
    """A restore of the newest point that died at that call of its writer."""
    with open_source(str(log)) as source, pytest.raises(CrashError):
        go(source, to, at)


def test_it_says_which_command_goes_on(tmp_path: Path, history: History, command: Command) -> None:
    """`latest` means another point once there is one: a device would be refused then, and a file begin anew."""
    log, to = tmp_path / "log", tmp_path / "disk 1.img"
    with files_end_at(3 * CHUNK_BYTES):
        ended = command("restore", log, f"{NAME}@latest", "--to", to, "--overwrite", "--json", code=1)
    before, words, again = ended.error["mend"].partition("; it goes on with: ")
    assert words and before and f"{NAME}@1:1" in again and "--overwrite" in again
    history.write(0, bytes(SIZE))
    assert command("restore", log, f"{NAME}@latest", "--to", to, "--dry-run", "--json").document["gives_up"]
    program, *arguments = shlex.split(again)
    assert program == "replicator"
    command(*arguments)
    assert to.read_bytes() == history.contents[1, 1] and not partial_path(to).exists()


def test_so_it_does_when_it_is_stopped(tmp_path: Path, history: History, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "disk.img"
    interrupted(tmp_path / "log", to)
    with open_source(str(tmp_path / "log")) as source:
        opened = source.open_point(f"{NAME}@1", now_ns=NOW_NS)
        with opened.disk:
            for as_json, target in ((False, to), (True, to), (False, tmp_path / "never-begun.img")):
                plan = plan_restore(opened, str(target))
                told_as = partial(_again, plan, "log", f"{NAME}@latest", "x y.img", False)
                with pytest.raises(KeyboardInterrupt), _told_how_it_goes_on(plan, told_as, as_json):
                    raise KeyboardInterrupt
                told = capsys.readouterr().err
                command = f"replicator restore log {NAME}@1:1 --to 'x y.img'"
                assert told == (f"it goes on with: {command}\n" if target == to and not as_json else "")


@pytest.mark.parametrize(
    ("error", "flags"),
    [
        (NotAsWrittenError("x at byte 0: read back otherwise"), " --overwrite"),
        (ChangedSinceError("x at byte 0: changed since"), " --overwrite"),
        (UnavailableError("the log went away"), ""),
        (DamageError("the point's own bytes"), None),
    ],
)
def test_the_command_is_one_that_goes_on(
    tmp_path: Path, history: History, error: ReplicatorError, flags: str | None
) -> None:
    """What was read back otherwise may be overwritten only if that is asked for; what is damaged stays so."""
    to = tmp_path / "disk.img"
    interrupted(tmp_path / "log", to)
    with open_source(str(tmp_path / "log")) as source:
        opened = source.open_point(f"{NAME}@1", now_ns=NOW_NS)
        with opened.disk:
            plan = plan_restore(opened, str(to))
            again = partial(_again, plan, "log", f"{NAME}@1", "x.img", False)
            with pytest.raises(type(error)), _told_how_it_goes_on(plan, again, True):
                raise error
    wanted = None if flags is None else f"it goes on with: replicator restore log {NAME}@1:1 --to x.img{flags}"
    assert error.mend == wanted


def test_names_that_a_command_line_takes_for_options_or_cant_show(tmp_path: Path, history: History) -> None:
    with open_source(str(tmp_path / "log")) as source:
        opened = source.open_point(f"{NAME}@1", now_ns=NOW_NS)
        with opened.disk:
            plan = plan_restore(opened, str(tmp_path / "x.img"))
            odd = _again(plan, "-pool", f"{NAME}@1", "x.img", False, overwrite=True)
            assert odd == f"replicator restore --to x.img --overwrite -- -pool {NAME}@1:1"
            assert not _again(plan, "log", f"{NAME}@1", "/mnt/\udcff.img", False, overwrite=False)
            with pytest.raises(UsageError, match="root folder"):
                plan_restore(opened, "/")


def test_another_points_unfinished_restore_is_named(tmp_path: Path, history: History, command: Command) -> None:
    log, to = tmp_path / "log", tmp_path / "disk.img"
    interrupted(log, to)
    history.write(0, bytes(SIZE))
    shown = command("restore", log, f"{NAME}@latest", "--to", to, "--dry-run").out
    assert f"an unfinished restore of {NAME}@1:1" in shown and state_path(to).exists()
    assert f"{NAME}@1:1 to the same target is given up" in command("restore", log, f"{NAME}@latest", "--to", to).err
    assert to.read_bytes() == history.contents[1, 2]


def test_a_device_is_refused_with_the_point_that_goes_on(
    tmp_path: Path, history: History, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with loop_device(tmp_path, SIZE, monkeypatch) as device:
        interrupted(log, device)
        history.write(0, random.Random(2).randbytes(SIZE))
        error = command("restore", log, f"{NAME}@latest", "--to", device, "--json", code=4).error
        assert f"a restore of {NAME}@1:1 to it" in error["message"] and "--overwrite" in error["mend"]
        done = command("restore", log, f"{NAME}@1:1", "--to", device, "--json").document
        assert done["resumed_at_bytes"] == 2 * CHUNK_BYTES and device.read_bytes() == history.contents[1, 1]


def test_it_says_what_it_waits_for(tmp_path: Path, command: Command) -> None:
    """Walking a far log takes minutes; and a pool that is read without an owner lets none come."""
    pool, _ = pool_with_point(tmp_path, 1, CHUNK_BYTES, 1, 2)
    pool.close()
    place, to = tmp_path / "pool", tmp_path / "disk.img"

    def told(*more: str) -> str:
        to.unlink(missing_ok=True)
        return command("restore", place, f"{NAME}@1", "--to", to, *more).err

    assert ALONE in told() and "reading the log ..." in told() and told("--json") == ""
    assert ALONE not in told("--dry-run") and "reading the log" not in told("--from-pool")
    with served(place):
        assert ALONE not in told()
    assert ALONE not in command("restore", tmp_path / "log", f"{NAME}@1", "--to", to, "--overwrite").err


def test_reading_back_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal only one can be shown at a time."""

    def both() -> None:
        with _Bars(100) as bars:
            for tell in (bars.at("copying it"), bars.at("reading it back")):
                tell(0)
                tell(100)

    shown = shown_on_terminal(monkeypatch, both)
    assert 0 <= shown.find("copying it") < shown.find("reading it back")
