"""Mutants: seeded bugs of the engine as patches, the tree that each makes, and whether its named test finds it.

    # what is broken, in a sentence
    # promise: P6
    # killed by: tests/faults/test_crash_words.py::test_every_crash_of[a flush]
    --- a/replicator/pdata/transaction.py
    +++ b/replicator/pdata/transaction.py
    @@ -171,3 +171,2 @@
     context
    -line
    +line

Any program that knows unified diffs can apply them; here the old lines of a hunk are looked for in the whole file, so
that line numbers don't matter: they have to stand in it exactly once.

A mutant is killed when its test *fails*, by an assertion, within the time: an error at collection, a skip, or no such
test is none. Its file must be the named test's own doing: the same test passes on the unmutated copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("replicator", "agent", "receiver", "tests")
LEFT_OUT = shutil.ignore_patterns("golden", "mutants", "*.img", "*.zst")
PLUGINS = ("-p", "no:cacheprovider", "-p", "timeout")
"""The one that pyproject.toml has a setting for; to load all that are installed took half of a mutant's time."""
_HEADER = re.compile(r"^# (?P<key>promise|killed by): (?P<value>.+)$", re.MULTILINE)
_ASSERTION = re.compile(r"AssertionError|assert |DID NOT RAISE")


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines of one file that become others."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One patch."""

    name: str
    what: str
    promise: str
    killed_by: str
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How tests went in a tree: how many ran, failed, or never came so far; with what they said.

    A fixture that finds the same damage behind a test is no error.
    """

    ran: int
    failed: int
    errors: int
    skipped: int
    messages: tuple[str, ...]
    output: str

    @property
    def is_killed(self) -> bool:
        """Whether an assertion failed, and nothing else went wrong."""
        return bool(self.failed) and not self.errors and any(_ASSERTION.search(each) for each in self.messages)


def read_mutant(path: Path) -> Mutant:
    """The mutant that a patch describes."""
    text = path.read_text(encoding="utf-8")
    header, _, diff = text.partition("--- ")
    found = {match["key"]: match["value"] for match in _HEADER.finditer(header)}
    what = header.partition("# promise")[0].replace("# ", "").replace("\n", " ").strip()
    return Mutant(path.stem, what, found["promise"], found["killed by"], tuple(_hunks("--- " + diff)))


def _hunks(diff: str) -> Iterable[Hunk]:
    path, old, new = "", list[str](), list[str]()
    for line in [*diff.splitlines(keepends=True), "@@"]:
        if line.startswith(("---", "+++", "@@")) and (old or new):
            yield Hunk(path, "".join(old), "".join(new))
            old, new = [], []
        if line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/").strip()
        elif line[:1] in "- " and not line.startswith("---"):
            old.append(line[1:])
        if line[:1] in "+ " and not line.startswith("+++"):
            new.append(line[1:])


def apply(mutant: Mutant, tree: Path) -> None:
    """Change the files of `tree`; AssertionError where the old lines don't stand exactly once."""
    for hunk in mutant.hunks:
        path = tree / hunk.path
        text = path.read_text(encoding="utf-8")
        assert text.count(hunk.old) == 1, f"{mutant.name}: {text.count(hunk.old)} places in {hunk.path} fit\n{hunk.old}"
        path.write_text(text.replace(hunk.old, hunk.new), encoding="utf-8")


def copy_tree(target: Path) -> None:
    """The project's code and tests, with the compiled files that Python made of them."""
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=LEFT_OUT)
    shutil.copy2(ROOT / "pyproject.toml", target / "pyproject.toml")


def run_tests(tree: Path, tests: Iterable[str], timeout_s: float) -> Outcome:
    """Run these tests alone, in the tree; TimeoutExpired when they don't end."""
    report = tree / "report.xml"
    argv = [sys.executable, "-m", "pytest", *PLUGINS, "-x", "--tb=line", f"--junitxml={report}", *tests]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name != "CI"}
    done = subprocess.run(
        argv,
        cwd=tree,
        env={**environment, "PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if not report.exists():
        return Outcome(0, 0, 1, 0, (), done.stdout)
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    ran, failed, skipped = (int(suite.get(name, "0")) for name in ("tests", "failures", "skipped"))
    errors = [each for each in suite.iter("error") if not each.get("message", "").startswith("failed on teardown")]
    messages = tuple(each.get("message", "") for each in suite.iter("failure"))
    return Outcome(ran, failed, len(errors), skipped, messages, done.stdout)
