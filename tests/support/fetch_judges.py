"""Gets the judges: other people's programs, unpacked below .cache/judges of the checkout. Run by `make judges`.

Each group of packages goes into a folder of its own, `.cache/judges/GROUP`, made beside and renamed into place; a file
`GROUP.packages` next to it says what it holds. Some programs are built here, of a source package. A group whose file
says what is wanted isn't fetched again.

Failures: a group that can't be had is named with the reason. With CI=true in the environment that is an error (exit 1);
without, the tests that need it are skipped (judges.require).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import go_programs, kafka_broker, kafka_jars, libnbd_programs
from tests.support.debian import DebianError, Release, machine_release

JUDGES = Path(__file__).resolve().parents[2] / ".cache" / "judges"
NBD_PACKAGES = ("nbdkit", "qemu-utils", "libnbd-bin", "nbd-client", "fio", "python3-libnbd", "e2fsprogs")
KERNEL_PACKAGES = (
    "user-mode-linux",
    "kmod",
    "dmsetup",
    "nbd-client",
    "slirp4netns",
    "iproute2",
    "e2fsprogs",
    "thin-provisioning-tools",
)


@dataclass(frozen=True, slots=True)
class Group:
    """Packages that are unpacked into one folder; `release` None is this machine's own, with all dependencies.

    `source`: a source package besides, which `build` (source folder, group's folder) makes programs of.
    `module`: instead of packages a program in Go, PATH@VERSION, built by the machine's own Go into usr/bin.
    """

    name: str
    release: str | None
    packages: tuple[str, ...]
    source: str = ""
    build: Callable[[Path, Path], None] | None = None
    module: str = ""


GROUPS = (
    Group("thin-cpp", "bookworm", ("thin-provisioning-tools", "libaio1")),  # 0.9.0
    Group("thin-rust", "trixie", ("thin-provisioning-tools",)),  # 1.1.0
    Group("nbd", None, NBD_PACKAGES),
    Group("kernel", None, KERNEL_PACKAGES),
    Group("lvm", None, ("lvm2",)),
    Group("libnbd-programs", None, ("libnbd-dev",), libnbd_programs.SOURCE, libnbd_programs.build),
    Group("ssh", None, ("openssh-server", "openssh-client", "libnss-wrapper")),
    Group("versitygw", None, (), module="github.com/versity/versitygw/cmd/versitygw@v1.8.0"),
)


def wanted_text(group: Group) -> str:
    """What a group's stamp file must say for it to be left alone."""
    built = f" {group.source}: {libnbd_programs.recipe()}" if group.source else ""
    return f"{group.release or 'own'}: {group.module or ' '.join(group.packages)}{built}\n"


def is_fetched(group: Group) -> bool:
    """Whether the group's folder stands and holds what is wanted today."""
    stamp = JUDGES / f"{group.name}.packages"
    return stamp.exists() and stamp.read_text() == wanted_text(group) and (JUDGES / group.name).is_dir()


def fetch(group: Group, updated: dict[str, Release]) -> None:
    """Unpack one group; `updated` holds the releases whose lists are fresh already."""
    if group.module:
        beside = JUDGES / f"{group.name}.new"
        shutil.rmtree(beside, ignore_errors=True)
        go_programs.install(group.module, beside / "usr/bin")
        settle(group, beside)
        return
    name = group.release or machine_release()
    if name not in updated:
        release = Release(name, JUDGES / "apt" / name)
        release.update()
        updated[name] = release
    release = updated[name]
    packages = group.packages if group.release else release.missing(group.packages)
    beside = JUDGES / f"{group.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    release.unpack(packages, beside)
    if group.build is not None:
        source = JUDGES / f"{group.name}.source"
        shutil.rmtree(source, ignore_errors=True)
        release.unpack_source(group.source, source)
        group.build(source, beside)
        shutil.rmtree(source)
    settle(group, beside)


def settle(group: Group, beside: Path) -> None:
    """Give what was fetched its place, and say what it is."""
    final = JUDGES / group.name
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    (JUDGES / f"{group.name}.packages").write_text(wanted_text(group))


def fetch_all() -> list[str]:
    """Fetch what is missing, and say so; returns what failed, with the reasons."""
    failures: list[str] = []
    updated: dict[str, Release] = {}
    for group in GROUPS:
        if is_fetched(group):
            continue
        began = time.monotonic()
        print(f"judges: getting {group.name} ({group.module or ', '.join(group.packages)})", flush=True)
        try:
            fetch(group, updated)
        except (DebianError, OSError) as reason:
            failures.append(f"{group.name}: {reason}")
        else:
            print(f"judges: {group.name} in {time.monotonic() - began:.1f} s", flush=True)
    shutil.rmtree(JUDGES / "apt", ignore_errors=True)
    if not kafka_jars.is_fetched(JUDGES):
        print(f"judges: getting kafka ({kafka_jars.KAFKA_VERSION}, by Maven)", flush=True)
        try:
            kafka_jars.fetch(JUDGES)
            kafka_broker.make_archive()
        except (kafka_jars.MavenError, AssertionError, OSError, subprocess.SubprocessError) as reason:
            failures.append(f"kafka: {reason}")
    return failures


def main() -> int:
    """Fetch all under a lock, since two runs may share a checkout."""
    JUDGES.mkdir(parents=True, exist_ok=True)
    with (JUDGES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failures = fetch_all()
    for failure in failures:
        print(f"judges: could not get {failure}", file=sys.stderr)
    return 1 if failures and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
