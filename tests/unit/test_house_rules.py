"""The house rules hold in every file, and each of them can fail."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import house
from tests.support.house import Source

ROOT = Path(__file__).resolve().parents[2]
LONG_FUNCTION = '"""M."""\ndef _f():\n' + "    x = 1\n" * 50
DOC = '"""M."""\n'

BAD = [
    (house.syntax_known, Source("agent/cut.py", DOC + "def f(:\n")),
    (house.file_length, Source("tests/unit/test_x.py", DOC + "x = 1\n" * 400)),
    (house.function_length, Source("agent/cut.py", LONG_FUNCTION)),
    (house.docstrings, Source("agent/cut.py", "x = 1\n")),
    (house.docstrings, Source("agent/cut.py", DOC + "def cut():\n    return 1\n")),
    (house.docstrings, Source("agent/cut.py", DOC + "class Cut:\n    x = 1\n")),
    (house.names, Source("replicator/utils/x.py", DOC)),
    (house.names, Source("agent/_helpers.py", DOC)),
    (house.purity, Source("replicator/events/codec.py", DOC + "import time\n")),
    (house.purity, Source("replicator/history/plan.py", DOC + "from random import choice\n")),
    (house.purity, Source("replicator/nbd/uri.py", DOC + "f = open('x')\n")),
    (house.purity, Source("replicator/nbd/uri.py", DOC + "import os\nos.pread(1, 2, 3)\n")),
    (house.purity, Source("replicator/nbd/uri.py", DOC + "x = datetime.datetime.now()\n")),
    (house.kafka, Source("replicator/log/directory.py", DOC + "import kafka\n")),
    (house.kafka, Source("agent/publish.py", DOC + "from kafka.errors import KafkaError\n")),
    (house.init, Source("agent/__init__.py", "x = 1\n")),
    (house.init, Source("agent/__init__.py", DOC + "def f():\n    pass\n")),
    (house.unfinished, Source("agent/cut.py", DOC + "# TO" + "DO later\n")),
    (house.unfinished, Source("agent/cut.py", DOC + "raise NotImpl" + "ementedError\n")),
    (house.reasons, Source("agent/cut.py", DOC + "x = 1  # no" + "qa: E501\n")),
    (house.reasons, Source("agent/cut.py", DOC + "x = 1  # ty" + "pe: ignore[misc]\n")),
    (house.places, Source("README.md", "see /" + "work/x\n")),
    (house.places, Source("deploy/x.service", "ExecStart=/" + "root/x\n")),
    (house.places, Source("Makefile", "pip install -i https://py" + "pi.org/simple\n")),
    (house.test_style, Source("tests/unit/test_x.py", DOC + "from unittest import mock\n")),
    (house.test_style, Source("tests/unit/test_x.py", DOC + "import time\ntime.sleep(1)\n")),
]

GOOD = [
    Source("replicator/nbd/failures.py", DOC + "import os\n\nx = os.strerror(5)\n"),
    Source("replicator/log/kafka.py", DOC + "import kafka\n"),
    Source("agent/__init__.py", DOC + "from agent.cut import cut\n\n__all__ = ['cut']\n"),
    Source("agent/cut.py", DOC + "x = 1  # no" + "qa: E501 - the table is one line\n"),
    Source("agent/cut.py", DOC + "x = 1  # ty" + "pe: ignore[misc]  # the library has no types\n"),
    Source("README.md", "the socket is in /run/replicator, the pool in /srv/pool or /mnt/pool\n"),
    Source("tests/support/kernel.py", DOC + "import time\ntime.sleep(0.1)\n"),
]

CROOKED_TREE = {
    "agent/__init__.py": "import receiver\n",
    "receiver/__init__.py": "",
    "replicator/__init__.py": "",
    "replicator/errors.py": "",
    "replicator/units.py": "",
    "replicator/_buffer.py": "",
    "replicator/thin/__init__.py": "import replicator.cli\nimport kafka\n",
    "replicator/cli/__init__.py": "",
    "replicator/events/__init__.py": "import time\n",
    "replicator/history/__init__.py": "",
    "replicator/nbd/__init__.py": "",
}


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Every text file of the project."""
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout: which files belong to the project isn't known")
    return house.project_sources(ROOT)


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rule(rule: house.Rule, sources: list[Source]) -> None:
    found = house.problems(rule, sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "source"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_rule_finds_what_it_is_there_for(rule: house.Rule, source: Source) -> None:
    assert house.problems(rule, [source])


def test_every_rule_has_a_bad_example() -> None:
    assert {rule for rule, _ in BAD} == set(house.RULES)


@pytest.mark.parametrize("source", GOOD, ids=lambda source: source.path)
def test_what_is_allowed_passes_every_rule(source: Source) -> None:
    assert [text for rule in house.RULES for text in house.problems(rule, [source])] == []


def test_every_import_contract_can_fail(tmp_path: Path) -> None:
    """A small tree that breaks each contract of pyproject.toml is found crooked by each."""
    for path, text in CROOKED_TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    settings = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(settings[settings.index("[tool.importlinter]") :])
    count = len(tomllib.loads(settings)["tool"]["importlinter"]["contracts"])
    argv = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"Contracts: 0 kept, {count} broken." in done.stdout, done.stdout + done.stderr
