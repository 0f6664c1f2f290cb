"""README.md's commands, as they stand, in a shell: what a person types who reads it.

    commands    the indented lines of a section
    Places      the one table of what is put for what: paths, servers, keys
    Shell       one shell that is handed one line after the other; each has to end with 0
    Walk        a section's lines in order, halting where the test has something to do in between

Invariants
  W1  No line is changed but by Places. A comment that says `when` a command in backticks says, or shows, a word is
      waited for, and the command in `# with nobody using the pool: COMMAND` is given.
  W2  Every daemon that a line left in the background has ended with 0 before the shell does, and nothing else is left
      of all that was started; where the test fails, what is left is ended by its id.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support import leftovers
from tests.support.judges import ROOT

README = ROOT / "README.md"
LINE_S = 60.0  # the longest that one line may take, or that a state may be waited for
_END_S = 30.0
_STEP_S = 0.1
_INDENT = " " * 4
_MARK = "SHELL_OF_THE_README"  # beside the session's own mark, which goes on saying whose it all is
_WHEN = re.compile(r"# when `([^`]+)` (?:says|shows) ([\w-]+)")
_FIRST = re.compile(r"# with nobody using the pool: (.+)")
_LISTENS = re.compile(r"--listen unix:(\S+)")
_LOOP = (
    "while IFS= read -r line && IFS= read -r out; do "
    'eval "$line" </dev/null >"$out.out" 2>"$out.err"; echo "$? $!"; done'
)


def sections(text: str) -> dict[str, list[str]]:
    """The indented lines below each heading ("" for those before the first), as far as the next heading."""
    found: dict[str, list[str]] = {"": []}
    title = ""
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.strip("# ")
            found.setdefault(title, [])
        elif line.startswith(_INDENT) and line.strip():
            found[title].append(line.strip())
    return found


def commands(title: str) -> list[str]:
    """The indented lines of one section of README.md."""
    return sections(README.read_text())[title]


@dataclass(frozen=True, slots=True)
class Places:
    """What is put for what, all at once: nothing that was put is looked at again."""

    table: Mapping[str, str]

    def put(self, line: str) -> str:
        """The line as it is run here; the longest of two that fit is put."""
        names = sorted(self.table, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, names)), lambda found: self.table[found[0]], line)


@dataclass(frozen=True, slots=True)
class Said:
    """What a line printed."""

    out: str
    err: str


class Shell:
    """A shell in `here`, with `replicator` on its path; its home, runtime directory and outputs lie there too."""

    def __init__(self, here: Path, places: Places, programs: Path | None = None) -> None:
        self.work, self.places = here / "work", places
        self._said = here / "said"
        for folder in ("work", "home", "said", "run", "srv"):
            (here / folder).mkdir()
        path = [*([str(programs)] if programs else []), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._mark = uuid.uuid4().hex
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "REPLICATOR_"))},
            "PATH": ":".join(path),
            "HOME": str(here / "home"),
            "REPLICATOR_RUNTIME_DIR": str(here / "run" / "replicator"),
            leftovers.MARK: os.environ[leftovers.MARK],
            _MARK: self._mark,
        }
        self._jobs: dict[int, str] = {}
        self._count = 0
        argv = ["sh", "-c", _LOOP]
        self._child = subprocess.Popen(
            argv, cwd=self.work, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def run(self, line: str, *, code: int = 0) -> Said:
        """One line; it is over when it has ended, or, in the background, when what it listens on is there."""
        put = self.places.put(line)
        ended, job, said = self._run(put)
        assert ended == code, f"{line}\n  ended with {ended}: {said.out}{said.err}\n{self.daemons_said()}"
        if job is not None:
            self._jobs[job] = line
            if listens := _LISTENS.search(put):
                self._await(lambda: Path(listens[1]).is_socket(), line)
        return said

    def until(self, line: str, word: str) -> None:
        """Give a line again and again until what it prints has the word, and no NOT before it."""
        shown = re.compile(rf"(?<!NOT )\b{re.escape(word)}\b")
        self._await(lambda: shown.search(self._run(self.places.put(line))[2].out) is not None, f"{line}: no {word}")

    def end_jobs(self) -> None:
        """End what serves; see that it ended well, and so did those that were told to stop by a line."""
        for job, line in self._jobs.items():
            if line.startswith("replicator serve "):
                self._run(f"kill {job}")
            code = self._run(f"wait {job}")[0]
            assert code == 0, f"{line}\n  ended with {code}\n{self.daemons_said()}"
        self._jobs.clear()

    def daemons_said(self) -> str:
        """The ends of all that was written to standard error."""
        texts = [path.read_text(errors="replace") for path in sorted(self._said.glob("*.err"))]
        return "\n".join(text[-1500:] for text in texts if text)

    def _run(self, line: str) -> tuple[int, int | None, Said]:
        """The line's exit code, the id of what it put into the background, and what it said."""
        assert self._child.stdin is not None and self._child.stdout is not None, "asked for"
        self._count += 1
        out = self._said / f"{self._count:03}"
        self._child.stdin.write(f"{line}\n{out}\n".encode())
        answered = select.select([self._child.stdout], [], [], LINE_S)[0]
        assert answered, f"{line}\n  doesn't end\n{self.daemons_said()}"
        code, _, job = self._child.stdout.readline().decode().strip().partition(" ")
        texts = [out.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err")]
        assert "Traceback" not in texts[1] and "a bug of ours" not in texts[1], texts[1]
        in_background = _in_background(line)
        return int(code), int(job) if in_background else None, Said(*texts)

    def _await(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LINE_S
        while not holds():
            assert time.monotonic() < deadline, f"{what}\n{self.daemons_said()}"
            time.sleep(_STEP_S)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """W2."""
        try:
            if kind is None:
                self.end_jobs()
        finally:
            assert self._child.stdin is not None and self._child.stdout is not None, "asked for"
            self._child.stdin.close()
            deadline = time.monotonic() + (_END_S if kind is None else 0.0)
            while (left := leftovers.strays(self._mark, _MARK)) and time.monotonic() < deadline:
                time.sleep(_STEP_S)
            self._end_all()
            self._child.wait(_END_S)
            self._child.stdout.close()
        assert kind is not None or not left, "the README's lines left behind: " + "; ".join(map(str, left))

    def _end_all(self) -> None:
        """Each by its id, until none is left: one may start another before it is ended."""
        deadline = time.monotonic() + _END_S
        while left := leftovers.strays(self._mark, _MARK):
            assert time.monotonic() < deadline, f"won't end: {'; '.join(map(str, left))}"
            leftovers.end(left)
            time.sleep(_STEP_S)


def _in_background(line: str) -> bool:
    return shlex.split(line, comments=True)[-1:] == ["&"]


class Walk:
    """A section's lines in their order."""

    def __init__(self, shell: Shell, title: str, leaving_out: Container[str] = ()) -> None:
        self._shell, self._left = shell, [line for line in commands(title) if line not in leaving_out]

    def to(self, text: str) -> Said:
        """All lines up to the next one that holds `text`; what that one said."""
        assert any(text in line for line in self._left), f"no line with {text!r} is left in {self._left}"
        while True:
            line = self._left.pop(0)
            said = self._one(line)
            if text in line:
                return said

    def rest(self) -> None:
        """All that is left of them."""
        while self._left:
            self._one(self._left.pop(0))

    def _one(self, line: str) -> Said:
        if when := _WHEN.match(line):
            self._shell.until(when[1], when[2])
            return Said("", "")
        if first := _FIRST.match(line):
            return self._shell.run(first[1])
        return self._shell.run(line)
