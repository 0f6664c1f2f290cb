"""What the tests stand on does what it says, where a mistake in it would make other tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support import debian, fetch_judges, judges, leftovers, suite

STANZAS = """Types: deb
# a comment: with a colon
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://other.example/tools
Suites: cloud-bookworm
Components: main
"""
LINES = """# deb http://mirror.example/debian bookworm main
deb [arch=amd64] http://mirror.example/debian bookworm main contrib
deb http://docker.example bookworm stable
"""


def test_only_the_distributions_own_sources_are_taken_over(tmp_path: Path) -> None:
    parts, into = tmp_path / "apt" / "sources.list.d", tmp_path / "into"
    parts.mkdir(parents=True)
    into.mkdir()
    (parts / "debian.sources").write_text(STANZAS)
    (tmp_path / "apt" / "sources.list").write_text(LINES)
    assert debian.write_sources(tmp_path / "apt", into, "bookworm", "trixie") == 2
    assert "Suites: trixie trixie-updates" in (into / "debian.sources").read_text()
    assert "other.example" not in (into / "debian.sources").read_text()
    assert (into / "machine.list").read_text() == "deb [arch=amd64] http://mirror.example/debian trixie main contrib\n"


def test_source_packages_are_named_beside_the_programs() -> None:
    text = debian.with_sources(
        "Types: deb\nURIs: http://mirror.example/debian\n\ndeb [a=b] http://mirror.example x main\n"
    )
    assert text.splitlines()[0] == "Types: deb deb-src"
    assert text.splitlines()[-1] == "deb-src [a=b] http://mirror.example x main"


def test_a_failing_program_is_an_error_that_says_why() -> None:
    with pytest.raises(debian.DebianError, match="no such package"):
        debian.run(["sh", "-c", "echo no such package >&2; exit 100"], timeout_s=10)


def test_a_group_whose_packages_changed_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_judges, "JUDGES", tmp_path)
    group = fetch_judges.Group("tools", "bookworm", ("one",))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools.packages").write_text(fetch_judges.wanted_text(group))
    assert fetch_judges.is_fetched(group)
    assert not fetch_judges.is_fetched(fetch_judges.Group("tools", "bookworm", ("one", "two")))


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_judge_fails_under_ci_and_skips_elsewhere(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setitem(judges.NEEDS, "kernel", lambda: judges.find_tool("kernel", "no-such-program"))
    with pytest.raises(outcome, match="no-such-program isn't here"):
        judges.require("kernel")


def test_a_folder_that_is_missing_or_empty_is_a_problem(tmp_path: Path) -> None:
    folder = suite.Folder("unit", 1)
    assert suite.run_folder(tmp_path, folder, 1, soak=False).problem == "the folder is missing"
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    empty = suite.run_folder(tmp_path, folder, 1, soak=False)
    assert empty.problem == "holds no test"
    assert "holds no test" in suite.report([empty])


def test_a_child_that_is_left_is_seen_and_one_that_was_waited_for_is_not() -> None:
    before = leftovers.children()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert leftovers.children() - before == {child.pid}
    child.communicate(b"\n")
    assert leftovers.children() == before


def test_a_daemon_that_left_its_session_is_found_by_its_mark() -> None:
    mark = uuid.uuid4().hex
    env = {**os.environ, leftovers.MARK: mark}
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        found = leftovers.strays(mark)
        assert [process.pid for process in found] == [child.pid]
        assert "test_a_daemon_that_left_its_session" in found[0].test
        leftovers.end(found)
    assert child.returncode < 0
