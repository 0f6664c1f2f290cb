"""Where other people's programs are, how to start them, and what to do when one isn't there.

Programs come from .cache/judges (fetch_judges), and from this machine where it has them. Each is a `Tool`: a path and
the library path that its unpacked packages need.

    judge       what it is
    thin-cpp    thin-provisioning-tools 0.9.0 (C++): lenient about counts, quick (4-40 ms a thin_check)
    thin-rust   thin-provisioning-tools 1.x (Rust): strict about fill and counts; each run sleeps half a second
    nbd         nbdinfo, nbdcopy, nbdkit, qemu-img, qemu-io, qemu-nbd, nbd-client, fio, mkfs.ext4, e2fsck, debugfs
    libnbd      libnbd's Python module
    libnbd-programs  libnbd's C programs (tests.support.libnbd_programs)
    kernel      user-mode-linux with its modules (tests.support.kernel)
    lvm         LVM's commands, for use in the kernel's guest (tests.support.lvm)
    ssh         OpenSSH's sshd and ssh (tests.support.sshd)
    versitygw   an S3 server on a directory, with conditional PUT (tests.support.s3_server)
    kafka       Apache Kafka's jars, and Java (tests.support.kafka_broker)

Invariants
  J1  With CI=true a missing judge fails the test that needs it; otherwise it is skipped, with the reason.
  J2  Nothing here changes os.environ: the environment is handed to each child.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from tests.support import kafka_jars
from tests.support.libnbd_programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
JUDGES = ROOT / ".cache" / "judges"
BIN_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")
Engine = Literal["cpp", "rust"]
Judge = Literal[
    "thin-cpp", "thin-rust", "nbd", "libnbd", "libnbd-programs", "kernel", "lvm", "ssh", "versitygw", "kafka"
]
ENGINES: tuple[Engine, ...] = ("cpp", "rust")
NBD_TOOLS = (
    "nbdinfo",
    "nbdcopy",
    "nbdkit",
    "qemu-img",
    "qemu-io",
    "qemu-nbd",
    "nbd-client",
    "fio",
    "mkfs.ext4",
    "e2fsck",
)
CHECKS_AT_ONCE = 32  # a Rust thin_check sleeps half a second and works for milliseconds


class JudgeMissingError(Exception):
    """A program that a test needs isn't here."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One program of a judge; `library_path` goes into LD_LIBRARY_PATH, empty for one of the machine's own."""

    path: Path
    library_path: str

    def argv(self, *arguments: str | Path | int) -> list[str]:
        """The command line."""
        return [str(self.path), *map(str, arguments)]

    def env(self, **more: str) -> dict[str, str]:
        """The environment to start it in."""
        return {
            **os.environ,
            "LC_ALL": "C",
            **({"LD_LIBRARY_PATH": self.library_path} if self.library_path else {}),
            **more,
        }

    def run(
        self, *arguments: str | Path | int, timeout_s: float = 120, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end, standard error joined to the output; with `check` a failure is an AssertionError."""
        given = subprocess.DEVNULL if stdin is None else None
        done = subprocess.run(
            self.argv(*arguments),
            env=self.env(),
            stdin=given,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        text = done.stdout.decode("utf-8", "replace")
        if check and done.returncode:
            raise AssertionError(f"{' '.join(self.argv(*arguments))} ended with {done.returncode}:\n{text[-4000:]}")
        return subprocess.CompletedProcess(done.args, done.returncode, text)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one engine's thin_check said about a metadata file."""

    engine: Engine
    metadata: Path
    clean: bool
    output: str


def find_tool(group: str, name: str) -> Tool:
    """A program of an unpacked group, else the machine's own; JudgeMissingError when there is none."""
    for folder in BIN_FOLDERS:
        path = JUDGES / group / folder / name
        if path.exists():
            return Tool(path, library_path(JUDGES / group))
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise JudgeMissingError(f"{name} isn't here: run `make judges`")
    return Tool(Path(found), "")


@functools.cache
def library_path(root: Path) -> str:
    """The library folders of an unpacked root, joined for LD_LIBRARY_PATH."""
    patterns = ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib", "lib")
    return ":".join(str(folder) for pattern in patterns for folder in sorted(root.glob(pattern)) if folder.is_dir())


def thin_tool(engine: Engine, name: str) -> Tool:
    """thin_check, thin_dump, thin_delta, thin_ls, thin_repair, thin_restore, thin_rmap of one of the two engines."""
    tool = find_tool(f"thin-{engine}", name)
    if tool.library_path == "":
        version = subprocess.run(tool.argv("-V"), capture_output=True, text=True, check=False).stdout
        if bool(re.search(r"\b0\.\d", version)) != (engine == "cpp"):
            raise JudgeMissingError(f"{name} of the {engine} engine isn't here: run `make judges`")
    return tool


def nbd_tool(name: str) -> Tool:
    """One of NBD_TOOLS, or a neighbour of theirs (debugfs, nbdfuse …)."""
    return find_tool("nbd", name)


def libnbd_program(name: str) -> Tool:
    """One of libnbd's C programs."""
    return find_tool("libnbd-programs", name)


def nbdkit_part(kind: Literal["plugin", "filter"], name: str) -> str:
    """What to call nbdkit's plugin or filter: its path where nbdkit was unpacked, else its name."""
    found = sorted((JUDGES / "nbd").glob(f"usr/lib/*/nbdkit/{kind}s/nbdkit-{name}-{kind}.so"))
    return str(found[0]) if found and nbd_tool("nbdkit").library_path else name


@functools.cache
def libnbd_module() -> ModuleType:
    """libnbd's Python module `nbd`, imported into this process without the rest of the system's packages."""
    if importlib.util.find_spec("nbd") is not None:
        return importlib.import_module("nbd")
    root = JUDGES / "nbd" if any((JUDGES / "nbd").glob("usr/lib/python3/dist-packages/nbd.py")) else Path("/")
    packages = root / "usr/lib/python3/dist-packages"
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
    extensions = [path for path in packages.glob("libnbdmod*.so") if tag in path.name]
    if not extensions or not (packages / "nbd.py").exists():
        raise JudgeMissingError(
            f"libnbd's module for Python {sys.version_info.major}.{sys.version_info.minor} isn't here"
        )
    _load_libraries(extensions[0], library_path(root) if root != Path("/") else "")
    links = JUDGES / f"libnbd-{tag}links"
    links.mkdir(parents=True, exist_ok=True)
    for path in (packages / "nbd.py", extensions[0]):
        _link(links / path.name, path)
    sys.path.append(str(links))
    return importlib.import_module("nbd")


def _link(link: Path, target: Path) -> None:
    """Make `link` point at `target`; two test workers may do so at once."""
    if link.is_symlink() and link.readlink() == target:
        return
    beside = link.with_name(f"{link.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.rename(link)


def _load_libraries(extension: Path, folders: str) -> None:
    """Load what an extension needs from unpacked folders; the dynamic linker then finds them by their names."""
    if not folders:
        return
    env = {**os.environ, "LD_LIBRARY_PATH": folders}
    listed = subprocess.run(["ldd", str(extension)], env=env, capture_output=True, text=True, check=False)
    waiting = [path for path in re.findall(r"=> (/\S+)", listed.stdout) if path.startswith(tuple(folders.split(":")))]
    while waiting:
        left = [path for path in waiting if not _loads(path)]
        if len(left) == len(waiting):
            raise JudgeMissingError(f"{left[0]} can't be loaded")
        waiting = left


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _need_nbd() -> None:
    for name in NBD_TOOLS:
        nbd_tool(name)


def _need_libnbd_programs() -> None:
    for name in PROGRAMS:
        libnbd_program(name)


def _need_kernel() -> None:
    if not (JUDGES / "kernel/usr/bin/linux.uml").exists():
        raise JudgeMissingError("user-mode-linux isn't here: run `make judges`")


def _need_kafka() -> None:
    if not kafka_jars.is_fetched(JUDGES):
        raise JudgeMissingError("Kafka isn't here: run `make judges`, with mvn and java")
    find_tool("kafka", "java")


NEEDS: dict[Judge, Callable[[], object]] = {
    "thin-cpp": lambda: thin_tool("cpp", "thin_check"),
    "thin-rust": lambda: thin_tool("rust", "thin_check"),
    "nbd": _need_nbd,
    "libnbd": libnbd_module,
    "libnbd-programs": _need_libnbd_programs,
    "kernel": _need_kernel,
    "lvm": lambda: find_tool("lvm", "lvm"),
    "ssh": lambda: [find_tool("ssh", name) for name in ("sshd", "ssh", "ssh-keygen")],
    "versitygw": lambda: find_tool("versitygw", "versitygw"),
    "kafka": _need_kafka,
}


def why_missing(judge: Judge) -> str | None:
    """The reason why a judge can't be asked, or None."""
    try:
        NEEDS[judge]()
    except (JudgeMissingError, ImportError) as reason:
        return f"{judge}: {reason}"
    return None


def require(*judges: Judge) -> None:
    """Go on only when all these judges are here (J1)."""
    for judge in judges:
        reason = why_missing(judge)
        if reason is not None and os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        if reason is not None:
            pytest.skip(reason)


def check_one(engine: Engine, metadata: Path) -> Verdict:
    """One engine's thin_check on a metadata file that nobody writes."""
    done = thin_tool(engine, "thin_check").run(metadata, check=False)
    return Verdict(engine, metadata, done.returncode == 0, done.stdout)


def check_many(metadata: Iterable[Path]) -> list[Verdict]:
    """Both engines' verdicts on each file, two for each, in order; many run side by side."""
    jobs = [(engine, path) for path in metadata for engine in ENGINES]
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        return list(pool.map(lambda job: check_one(*job), jobs))


def check_both(metadata: Path) -> list[Verdict]:
    """Both engines' verdicts on one file."""
    return check_many([metadata])


def assert_clean(*metadata: Path) -> None:
    """Both engines find no fault with any of the files."""
    faulty = [verdict for verdict in check_many(metadata) if not verdict.clean]
    report = "\n".join(f"{verdict.engine} {verdict.metadata}:\n{verdict.output}" for verdict in faulty[:4])
    assert not faulty, f"{len(faulty)} thin_checks found damage\n{report}"
