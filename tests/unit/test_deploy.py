"""What lies in deploy/: examples are what `init` writes; systemd accepts the units; one way to install."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import agent.config
import receiver.config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PROGRAM = "/opt/replicator/bin/replicator"
INSTALL = "python3 -m venv /opt/replicator && /opt/replicator/bin/pip install ."
LINK = f"ln -s {PROGRAM} /usr/local/bin/"
TOLD = [  # all that tells somebody what to type; what came to be is another matter (CHANGELOG)
    *(ROOT / "README.md", ROOT / "ARCHITECTURE.md", *DEPLOY.rglob("*"), *(ROOT / "docs").rglob("*")),
    *(path for folder in ("replicator", "agent", "receiver") for path in (ROOT / folder).rglob("*.py")),
]


@pytest.mark.parametrize(("name", "settings"), [("agent", agent.config), ("receiver", receiver.config)])
def test_examples_are_what_init_writes(name: str, settings: object) -> None:
    assert (DEPLOY / f"{name}.toml").read_text() == getattr(settings, "TEMPLATE")  # noqa: B009 - two modules of one shape


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze isn't here")
    for unit in UNITS:
        text = unit.read_text().replace(PROGRAM, shutil.which("true") or "/bin/true")
        for name in (unit.name, unit.name.replace("@", "@pool")):
            (tmp_path / name).write_text(text)
    instances = sorted(map(str, tmp_path.glob("*@pool.service")))
    env = {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run([verify, "verify", *instances], check=False, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_run_commands_that_there_are(unit: Path) -> None:
    import click

    from replicator.cli.main import cli

    line = re.search(rf"^ExecStart={PROGRAM} (.+)$", unit.read_text(), re.MULTILINE)
    assert line is not None
    command: click.Command = cli
    words = line[1].split()
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_no_unit_can_kill_the_disks_with_the_agent() -> None:
    texts = {unit.name: unit.read_text() for unit in UNITS}
    assert "KillMode=process" in texts["replicator-agent@.service"]
    assert "KillMode=process" in texts["replicator-receiver@.service"]
    for relation in ("Requires=", "BindsTo=", "PartOf="):
        assert relation not in "".join(texts.values())


def test_there_is_one_way_to_install_and_the_path_has_what_units_run() -> None:
    for name in ("README.md", "deploy/README.md", "deploy/ssh/README.md"):
        text = (ROOT / name).read_text()
        assert INSTALL in text and LINK in text, name


def test_no_registry_is_asked_for_a_name_that_may_be_anothers() -> None:
    """Nor the system's own pip, which Debian's Python refuses (PEP 668)."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in TOLD
        if path.is_file()
        for line in path.read_text().splitlines()
        if re.search(r"""pip install (?:-\S+ )*['"]?replicator|[`(]pip install \.""", line)
    ]
    assert found == []


def test_kafkas_tools_are_told_where_the_broker_is() -> None:
    text = (DEPLOY / "kafka" / "README.md").read_text()
    calls = re.findall(r"kafka-(?:acls|configs|topics|transactions)\.sh (-[^`\n]*)", text)
    assert calls and all("--bootstrap-server " in each for each in calls), calls
    started = re.findall(r"kafka-server-start\.sh (.*)", text)
    assert started == ["-daemon server.properties"], "so that the lines behind it are reached"
