"""README.md tells the truth: its command lines, as they stand, bring a first-time user from nothing to a restored file.

Each way begins with two pools that aren't there and ends with files that qemu finds equal to what was written through
NBD. What a section needs beforehand (its world) comes from the lines of the section before it.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support import judges, kafka_broker
from tests.support.readme_script import README, Places, Shell, Walk, sections
from tests.support.s3_server import BUCKET, ROOT_KEY, ROOT_SECRET, running_s3
from tests.support.sshd import running_sshd

DEPLOY = judges.ROOT / "deploy"
MONDAY = ("write -P 1 0 1M", "write -P 2 5M 64k")
LATER = ("write -P 3 0 64k", "write -P 4 7M 128k")
LIVE = ("write -P 5 32k 64k",)
RUN = (
    *("A replica in five minutes", "SSH", "S3", "Kafka", "One cut, by cron", "When the log is away"),
    *("Many receivers", "Check and repair", "The worst day", "Monitoring"),
)
NOT_RUN = {
    "make demo     # replicates a live volume on this machine, kills every part of it once, restores three points and "
    "proves them": "a test of its own",
    "make test     # everything that is promised here, with thin_check, libnbd, qemu, fio and a real kernel as "
    "judges": "it is what runs this",
    "PROTECTED, would lose 0.8 s": "an answer, and no command",
    "NOT PROTECTED since 16:53 (5.4 s): log unreachable: …": "an answer, and no command",
}
NO_COMMANDS = ("How it works",)  # a drawing

pytestmark = pytest.mark.usefixtures("nbd_judges")


class Disk:
    """A volume over NBD, as qemu writes to it, and files that get the same writes."""

    def __init__(self, here: Path, size: str = "20G", name: str = "vm1", socket: str = "vm1.sock") -> None:
        self._here, self._size = here, size
        self._uri = f"nbd+unix:///{name}?socket={here}/run/{socket}"

    def write(self, orders: tuple[str, ...], *files: str) -> None:
        """Into the volume, and into each of these files."""
        given = [word for order in orders for word in ("-c", order)]
        for target in (self._uri, *(str(self.file(name)) for name in files)):
            judges.nbd_tool("qemu-io").run("-f", "raw", *given, target)

    def file(self, name: str) -> Path:
        """A file of the volume's size; empty the first time."""
        path = self._here / name
        if not path.exists():
            judges.nbd_tool("qemu-img").run("create", "-f", "raw", path, self._size)
        return path


def assert_same(found: Path | str, expected: Path) -> None:
    """qemu finds the same bytes in both."""
    judges.nbd_tool("qemu-img").run("compare", "-f", "raw", "-F", "raw", found, expected)


def served(here: Path, name: str, socket: str) -> str:
    """What is served at a socket in /run."""
    return f"nbd+unix:///{name}?socket={here}/run/{socket}"


def shell_in(here: Path, more: dict[str, str] | None = None, programs: Path | None = None) -> Shell:
    """A shell whose /srv and /run are in `here`, as is the disk that is there for a restore."""
    places = {"/srv/": f"{here}/srv/", "/run/": f"{here}/run/", "/dev/vdb": f"{here}/vdb"}
    return Shell(here, Places(places | (more or {})), programs)


def stop(shell: Shell) -> None:
    """The two daemons of a section, by the commands that the README has for it."""
    shell.run("replicator agent stop /srv/source")
    shell.run("replicator receiver stop /srv/replica")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_replica_in_five_minutes(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with shell_in(tmp_path) as shell:
        walk = Walk(shell, "A replica in five minutes")
        walk.to("agent run")
        shell.until("replicator agent status /srv/source", "PROTECTED")  # a few seconds later
        walk.to("receiver run")
        assert f"{tmp_path}/run/vm1.sock" in walk.to("replicator connect").out
        disk.write(MONDAY, "monday", "later")
        walk.to("points create")
        assert "monday" in walk.to("points list").out
        disk.write(LATER, "later")
        walk.rest()
        assert_same(shell.work / "monday.img", disk.file("monday"))
        assert_same(served(tmp_path, "vm1%40monday", "old.sock"), disk.file("monday"))
        Walk(shell, "Monitoring").rest()
        stop(shell)


@contextlib.contextmanager
def ssh_places(here: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """An sshd, and an ssh whose configuration calls it host.example, new-host and all else."""
    programs, config = here / "programs", here / "ssh_config"
    programs.mkdir()
    real = judges.find_tool("ssh", "ssh").path
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {real} -F {shlex.quote(str(config))} "$@"\n')
    (programs / "ssh").chmod(0o755)
    with running_sshd(here / "sshd") as sshd:
        config.write_text(
            f"Host new-host\nIdentityFile {sshd.folder}/client\nUserKnownHostsFile {sshd.folder}/known_hosts\n"
            f"Host *\nIdentityFile {key_of(here)}\nUserKnownHostsFile {here}/known_hosts\n"
            f"HostName 127.0.0.1\nPort {sshd.port}\nIdentitiesOnly yes\nGlobalKnownHostsFile none\n"
        )
        (here / "keys").symlink_to(sshd.folder / "authorized_keys")
        there = f"{sshd.user}@host.example"
        yield (
            {
                "replicator@host.example": there,
                "ssh replicator@host.example": f"ssh -o StrictHostKeyChecking=accept-new {there}",  # the answer yes
                "cat > vm1.img": f"cat > {here}/vm1.img",
            },
            programs,
        )


def key_of(here: Path) -> Path:
    """The source host's, where the README puts it."""
    return here / "home" / ".ssh" / "id_ed25519"


def authorize(here: Path) -> None:
    """The key's line from deploy/ssh/authorized_keys, at the far end, with the program named in the forced command."""
    lines = (DEPLOY / "ssh" / "authorized_keys").read_text().splitlines()
    program = f'"{Path(sys.executable).parent}/replicator '
    line = Places({"/srv/": f"{here}/srv/", '"replicator ': program}).put(next(x for x in lines if "agent@" in x))
    key = key_of(here).with_suffix(".pub").read_text().split()[1]
    (here / "keys").write_text(line.replace("AAAA…", key) + "\n")


@contextlib.contextmanager
def s3_places(here: Path) -> Iterator[tuple[dict[str, str], None]]:
    """A bucket, its server and its keys."""
    with running_s3(here / "s3") as server:
        yield (
            {
                "AWS_ACCESS_KEY_ID=…": f"AWS_ACCESS_KEY_ID={ROOT_KEY}",
                "AWS_SECRET_ACCESS_KEY=…": f"AWS_SECRET_ACCESS_KEY={ROOT_SECRET}",
                "BUCKET": BUCKET,
                "region=eu-central-1": f"region=us-east-1&endpoint={server.endpoint}",
            },
            None,
        )


@contextlib.contextmanager
def kafka_places(_: Path) -> Iterator[tuple[dict[str, str], None]]:
    """The shared broker, and a prefix that nobody else has."""
    yield {"HOST:9092/backup": f"{kafka_broker.shared().address}/backup-{uuid.uuid4().hex}"}, None


FarPlaces = Callable[[Path], AbstractContextManager[tuple[dict[str, str], Path | None]]]
FAR: dict[str, tuple[judges.Judge, FarPlaces]] = {
    "SSH": ("ssh", ssh_places),
    "S3": ("versitygw", s3_places),
    "Kafka": ("kafka", kafka_places),
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("title", FAR)
def test_from_nothing_to_a_restored_file(title: str, tmp_path: Path) -> None:
    judge, places = FAR[title]
    judges.require(judge)
    disk = Disk(tmp_path)
    with places(tmp_path) as (put, programs), shell_in(tmp_path, put, programs) as shell:
        walk = Walk(shell, title)
        if title == "SSH":
            key_of(tmp_path).parent.mkdir(mode=0o700)
            (tmp_path / "srv" / "replicator").mkdir()  # the home of the far end's user
            walk.to("ssh-keygen")
            authorize(tmp_path)
        walk.to("receiver run")
        disk.write(MONDAY, "monday")
        walk.to("agent snapshot")
        disk.write(LATER)
        assert "monday" in walk.to("points list").out
        walk.rest()
        assert_same(shell.work / "monday.img", disk.file("monday"))
        shell.until("replicator points list /srv/replica vm1 | grep -o monday", "monday")
        if title == "Kafka":
            shell.run("replicator restore /srv/archive vm1@monday --to archived.img")
            assert_same(shell.work / "archived.img", disk.file("monday"))
        stop(shell)


def test_one_cut_by_cron(tmp_path: Path) -> None:
    with shell_in(tmp_path) as shell:
        for line in ("LOG=/srv/log", "replicator pool create /srv/source --size 1GiB"):
            shell.run(line)
        shell.run("replicator pool create /srv/replica --size 1GiB")
        (shell.work / "disk.img").write_bytes(bytes(range(256)) * 4096)
        Walk(shell, "One cut, by cron").rest()
        shell.run("replicator restore /srv/replica vm2@latest --to vm2.img")
        assert (shell.work / "vm2.img").read_bytes() == (shell.work / "disk.img").read_bytes()


def test_a_pool_older_than_its_log(tmp_path: Path) -> None:
    publish = "replicator agent publish /srv/source --log /srv/log"
    pool, older = tmp_path / "srv" / "source", tmp_path / "older"
    answers = {text: f"{text} --yes" for text in ("--from-log", "--new-timeline")}  # the person's, who decides
    with shell_in(tmp_path, answers) as shell:
        shell.run("replicator pool create /srv/source --size 1GiB")
        shell.run("replicator volume create /srv/source vm1 --size 1MiB")
        walk = Walk(shell, "When the log is away", leaving_out=NOT_RUN)
        for text in answers:
            shell.run(publish)
            shutil.copytree(pool, older)
            (shell.work / "disk.img").write_bytes(text.encode() * 4096)
            shell.run("replicator volume import /srv/source vm1 disk.img --yes")
            shell.run(publish)
            shutil.rmtree(pool)
            older.rename(pool)
            shell.run(publish, code=4)
            walk.to(text)
        shell.run(publish)
        walk.rest()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_from_many_receivers_to_the_worst_day(tmp_path: Path) -> None:
    judges.require("ssh")
    size = {"--size 20GiB": "--size 16MiB"}  # one restore of it goes through a pipe, with all its zeros
    disk, live = Disk(tmp_path, "16M"), Disk(tmp_path, "16M", "vm1-live", "live.sock")
    with ssh_places(tmp_path) as (put, programs), shell_in(tmp_path, put | size, programs) as shell:
        world = Walk(shell, "A replica in five minutes")
        shell.run("LOG=/srv/log")
        world.to("agent run")
        shell.until("replicator agent status /srv/source", "PROTECTED")
        world.to("receiver run")
        disk.write(MONDAY, "later", "live")
        many = Walk(shell, "Many receivers")
        many.to("points create")
        assert "before-upgrade" in shell.run("replicator points list /srv/replica-b vm1").out
        shell.run("replicator receiver stop /srv/replica-b")  # it is gone for good
        many.rest()
        disk.write(LATER, "later", "live")
        shell.run("replicator points create /srv/source vm1 --label last --wait")
        Walk(shell, "Check and repair").rest()
        shutil.rmtree(tmp_path / "srv" / "source")
        worst = Walk(shell, "The worst day")
        assert "last" in worst.to("points list").out
        worst.to("replicator serve")
        assert_same(served(tmp_path, "vm1%40latest", "look.sock"), disk.file("later"))
        worst.to("agent run")
        shell.until("replicator agent status /srv/replica", "PROTECTED")
        live.write(LIVE, "live")
        shell.run("replicator agent snapshot /srv/replica --label live")
        worst.rest()
        shell.run("replicator restore /srv/log2 vm1-live@live --to live.img")
        for name, expected in RESTORED.items():
            assert_same(shell.work / name, disk.file(expected))
        assert_same(served(tmp_path, "vm1%40latest", "log.sock"), disk.file("later"))
        shell.run("replicator restore /srv/new vm1@latest --to new.img")
        assert_same(shell.work / "new.img", disk.file("later"))
        shell.run("replicator agent stop /srv/replica")


RESTORED = {"from-replica.img": "later", "../vm1.img": "later", "from-log.img": "later", "live.img": "live"}


def test_every_line_is_run_or_has_its_reason() -> None:
    found = sections(README.read_text())
    assert set(RUN) | set(NO_COMMANDS) <= set(found)
    others = [line for title, lines in found.items() if title not in (*RUN, *NO_COMMANDS) for line in lines]
    inside = [line for title in RUN for line in found[title] if line in NOT_RUN]
    assert sorted(others + inside) == sorted(NOT_RUN)
