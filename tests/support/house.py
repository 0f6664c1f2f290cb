"""The house rules, as functions from a source file to what is wrong with it. Asked by tests/unit/test_house_rules.py.

    rule             where              what
    syntax_known     python             the file parses
    file_length      python             at most 400 lines
    function_length  product            at most 50 lines, docstring included
    docstrings       python             every module; in the product every public class and function too
    names            python             no module or folder is called by what it isn't about
    purity           pure rooms         no I/O, no clock, no chance
    kafka            product            only log/kafka.py imports kafka
    init             product            __init__.py holds a docstring, and re-exports at most
    unfinished       python             no mark of unfinished work
    reasons          python             an exemption from a linter says why, on its line
    places           every text file    no path of somebody's machine, no address of a registry
    test_style       tests              no mocks and no sleeps

`product` is replicator, agent and receiver; `python` is product, tests and benchmarks.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
REASON_CHARACTERS_MIN = 8
PRODUCT = ("replicator/", "agent/", "receiver/")
PYTHON = (*PRODUCT, "tests/", "benchmarks/")
PURE = ("replicator/events/", "replicator/history/", "replicator/nbd/")
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
IMPURE_MODULES = {
    "asyncio",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
}
IMPURE_MODULES |= {"tempfile", "threading", "time"}
IMPURE_CALLS = {
    "open",
    "input",
    "print",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "uuid1",
    "uuid4",
}
HARMLESS_OF_OS = {"strerror", "PathLike", "fspath", "fsdecode", "fsencode"}
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX|NotImpl" + r"ementedError)\b")
EXEMPTION = re.compile(
    r"#\s*(?:no" + r"qa(?::\s*[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)?|ty" + r"pe:\s*ignore(?:\[[^]]*\])?)(?P<rest>.*)"
)
PLACE = re.compile(r"(?<![\w.])/(?:work|root|tmp|home)/[\w.]")
REGISTRY = re.compile(r"\b(?:pypi|deb\.debian|files\.pythonhosted|registry\.npmjs|proxy\.golang)\.(?:org|net)\b")


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the project: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @property
    def is_python(self) -> bool:
        """Whether the rules for Python apply."""
        return self.path.endswith(".py") and self.path.startswith(PYTHON)

    @property
    def is_product(self) -> bool:
        """Whether the file is installed."""
        return self.path.endswith(".py") and self.path.startswith(PRODUCT)

    @property
    def tree(self) -> ast.Module:
        """The syntax tree; an empty one for what doesn't parse, which syntax_known reports."""
        try:
            return ast.parse(self.text)
        except SyntaxError:
            return ast.Module(body=[], type_ignores=[])


Rule = Callable[[Source], Iterator[str]]


def syntax_known(source: Source) -> Iterator[str]:
    """The file parses."""
    try:
        ast.parse(source.text)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"


def file_length(source: Source) -> Iterator[str]:
    """A file stays short enough to be read whole."""
    lines = len(source.text.splitlines())
    if lines > FILE_LINES_MAX:
        yield f"{lines} lines, of at most {FILE_LINES_MAX}"


def function_length(source: Source) -> Iterator[str]:
    """So does a function."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"line {node.lineno}: {node.name} has {lines} lines, of at most {FUNCTION_LINES_MAX}"


def docstrings(source: Source) -> Iterator[str]:
    """Modules say what they are; so does what the product shows to others."""
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield "the module has no docstring"
    for node in source.tree.body if source.is_product else []:
        if _is_public(node) and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def _is_public(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return False
    return not any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def names(source: Source) -> Iterator[str]:
    """A name says what is inside."""
    for part in source.path.removesuffix(".py").split("/"):
        if part.strip("_") in VAGUE_NAMES:
            yield f"{part!r} doesn't say what it is about"


def purity(source: Source) -> Iterator[str]:
    """Formats and decisions see no disk, no clock and no chance."""
    if not source.path.startswith(PURE):
        return
    for node in ast.walk(source.tree):
        for module in _imported(node):
            if module.partition(".")[0] in IMPURE_MODULES:
                yield f"imports {module}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os" and node.attr not in HARMLESS_OF_OS:
            yield f"line {node.lineno}: uses os.{node.attr}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if any(called == name or called.endswith(f".{name}") for name in IMPURE_CALLS):
                yield f"line {node.lineno}: calls {called}"


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports, by their absolute names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []


def kafka(source: Source) -> Iterator[str]:
    """One module knows the Kafka client, so that all others do without it."""
    if source.path == "replicator/log/kafka.py":
        return
    for node in ast.walk(source.tree):
        if any(module.partition(".")[0] == "kafka" for module in _imported(node)):
            yield "imports kafka"


def init(source: Source) -> Iterator[str]:
    """A package's __init__ is its table of contents."""
    if not source.path.endswith("/__init__.py"):
        return
    if not ast.get_docstring(source.tree):
        yield "has no docstring"
    for node in source.tree.body[1:]:
        named_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not isinstance(node, ast.ImportFrom) and not named_all:
            yield f"line {node.lineno}: holds more than a docstring and re-exports"


def unfinished(source: Source) -> Iterator[str]:
    """What is there is finished."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := UNFINISHED.search(line):
            yield f"line {number}: {found[0]}"


def reasons(source: Source) -> Iterator[str]:
    """Whoever silences a linter says why."""
    for number, line in enumerate(source.text.splitlines(), 1):
        found = EXEMPTION.search(line)
        if found and len(found["rest"].strip(" #:-—")) < REASON_CHARACTERS_MIN:
            yield f"line {number}: {found[0].strip()} without a reason"


def places(source: Source) -> Iterator[str]:
    """Nothing in the project depends on where it was written."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := PLACE.search(line) or REGISTRY.search(line):
            yield f"line {number}: {found[0]}"


def test_style(source: Source) -> Iterator[str]:
    """Tests use fakes at seams and clocks that they drive."""
    if not source.path.rpartition("/")[2].startswith(("test_", "conftest")):
        return
    for node in ast.walk(source.tree):
        if any(module == "unittest.mock" or module == "mock" for module in _imported(node)):
            yield "uses mocks"
        if isinstance(node, ast.ImportFrom) and node.module == "unittest" and any(a.name == "mock" for a in node.names):
            yield "uses mocks"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}:
            yield f"line {node.lineno}: sleeps"


EVERYWHERE: tuple[Rule, ...] = (places,)
FOR_PYTHON: tuple[Rule, ...] = (syntax_known, file_length, docstrings, names, unfinished, reasons, test_style)
FOR_PRODUCT: tuple[Rule, ...] = (function_length, purity, kafka, init)
RULES = (*EVERYWHERE, *FOR_PYTHON, *FOR_PRODUCT)


def applies(rule: Rule, source: Source) -> bool:
    """Whether a rule is meant for a file."""
    if rule in FOR_PRODUCT:
        return source.is_product
    return rule in EVERYWHERE or source.is_python


def problems(rule: Rule, sources: list[Source]) -> list[str]:
    """What one rule finds in all files that it is meant for, each with its path."""
    return [f"{source.path}: {text}" for source in sources if applies(rule, source) for text in rule(source)]


def project_sources(root: Path) -> list[Source]:
    """Every text file that is, or would be, under version control."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout
    found = []
    for path in sorted(set(listed.split("\0")) - {""}):
        try:
            found.append(Source(path, (root / path).read_text(encoding="utf-8")))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # golden bytes, or a file that was just removed
    return found
