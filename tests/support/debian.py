"""Packages of a Debian release, unpacked into a folder: nothing on this machine is installed or changed.

Used by fetch_judges. Each release has an apt configuration of its own, made from the machine's sources with the
release's name exchanged, so that a Debian 12 can unpack a program of Debian 13 and the reverse, by the mirrors that
the machine is set up for, and without being root.

Invariants
  D1  Lists, caches and archives stay below the folder that was given.
  D2  Only sources of the distribution itself (suite = release, -updates or -security, component main) are taken over.

Deliberately absent: anything that runs a package's scripts.
Failures raised: DebianError.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ETC_APT = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")
UPDATE_TIMEOUT_S = 300
DOWNLOAD_TIMEOUT_S = 900


class DebianError(Exception):
    """A package couldn't be had, and why."""


def machine_release() -> str:
    """The code name of this machine's Debian, such as `bookworm`."""
    if not OS_RELEASE.exists() or shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DebianError("this is no Debian (no apt-get and dpkg): install the judges by hand")
    fields = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    release = fields.get("VERSION_CODENAME", "").strip('"')
    if fields.get("ID", "").strip('"') != "debian" or not release:
        raise DebianError("this is no Debian release: install the judges by hand")
    return release


@dataclass(frozen=True, slots=True)
class Release:
    """One Debian release's archive, with its own lists below `folder`."""

    name: str
    folder: Path

    def update(self) -> None:
        """Fetch the release's package lists."""
        sources = self.folder / "sources"
        shutil.rmtree(sources, ignore_errors=True)
        for part in (sources, self.folder / "lists" / "partial", self.folder / "cache" / "archives" / "partial"):
            part.mkdir(parents=True, exist_ok=True)
        count = write_sources(ETC_APT, sources, machine_release(), self.name)
        if not count:
            raise DebianError(f"no source of this machine names its release {machine_release()}")
        self._apt("update", "-qq", timeout_s=UPDATE_TIMEOUT_S)

    def missing(self, packages: tuple[str, ...]) -> tuple[str, ...]:
        """The packages, and those that they depend on, which this machine, of the same release, lacks."""
        lines = self._apt("install", "-s", "-qq", "--no-install-recommends", *packages).splitlines()
        return tuple(line.split()[1] for line in lines if line.startswith("Inst "))

    def unpack(self, packages: tuple[str, ...], root: Path) -> None:
        """Download the packages and unpack them, one over the other, into `root`."""
        archives = self.folder / "archives"
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir(parents=True)
        if packages:
            self._apt("download", "-qq", *packages, timeout_s=DOWNLOAD_TIMEOUT_S, cwd=archives)
        root.mkdir(parents=True, exist_ok=True)
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg", "-x", str(archive), str(root)], DOWNLOAD_TIMEOUT_S)
        shutil.rmtree(archives)

    def unpack_source(self, package: str, root: Path) -> None:
        """Download the newest source of `package` that the release has, as its authors published it, into `root`."""
        for path in (self.folder / "sources").iterdir():
            path.write_text(with_sources(path.read_text()))
        self._apt("update", "-qq", timeout_s=UPDATE_TIMEOUT_S)
        archives = self.folder / "archives"
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir(parents=True)
        self._apt("source", "-qq", "--download-only", package, timeout_s=DOWNLOAD_TIMEOUT_S, cwd=archives)
        root.mkdir(parents=True)
        for archive in archives.glob("*.orig.tar.*[!c]"):  # not .asc, the signature
            run(["tar", "-xf", str(archive), "-C", str(root), "--strip-components=1"], DOWNLOAD_TIMEOUT_S)
        shutil.rmtree(archives)

    def _apt(self, verb: str, *arguments: str, timeout_s: float = 120, cwd: Path | None = None) -> str:
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self.folder / "sources",
            "Dir::State::lists": self.folder / "lists",
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        return run(["apt-get", *options, verb, *arguments], timeout_s, cwd)


def write_sources(etc: Path, into: Path, machine: str, wanted: str) -> int:
    """Copy the machine's own distribution sources, with the release exchanged; how many entries there were."""
    count = 0
    paths = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in paths:
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _one_line_is_ours(line, machine)]
            count += _write(into / path.name.replace("sources.list", "machine.list"), "\n".join(kept), machine, wanted)
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        stanzas = [part for part in path.read_text().split("\n\n") if _stanza_is_ours(part, machine)]
        count += _write(into / path.name, "\n\n".join(stanzas), machine, wanted)
    return count


def with_sources(text: str) -> str:
    """A file of sources of packages, made to name source packages too."""
    stanzas = re.sub(r"^Types: deb$", "Types: deb deb-src", text, flags=re.MULTILINE)
    lines = re.findall(r"^deb .*$", text, flags=re.MULTILINE)
    return stanzas + "".join(f"deb-src{line.removeprefix('deb')}\n" for line in lines)


def _write(path: Path, text: str, machine: str, wanted: str) -> int:
    if not text:
        return 0
    path.write_text(text.replace(machine, wanted) + "\n")
    return 1


def _suites(machine: str) -> set[str]:
    return {machine, f"{machine}-updates", f"{machine}-security"}


def _one_line_is_ours(line: str, machine: str) -> bool:
    words = line.split()
    return words[:1] == ["deb"] and "main" in words and not _suites(machine).isdisjoint(words)


def _stanza_is_ours(stanza: str, machine: str) -> bool:
    lines = [line for line in stanza.splitlines() if ":" in line and not line.startswith("#")]
    fields = {key.strip().lower(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    suites = {suite.rstrip("/") for suite in fields.get("suites", [])}
    enabled = fields.get("enabled", ["yes"]) != ["no"]
    return enabled and "main" in fields.get("components", []) and bool(suites) and suites <= _suites(machine)


def run(argv: list[str], timeout_s: float, cwd: Path | None = None) -> str:
    """Standard output of a program that must succeed."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, cwd=cwd, check=False)
    except subprocess.TimeoutExpired as late:
        raise DebianError(f"{argv[0]} took more than {timeout_s:.0f} s") from late
    if done.returncode:
        raise DebianError(f"{argv[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout
