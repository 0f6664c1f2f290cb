"""`replicator doctor`: what this host can do, and why not (row S0-17).

Looks, and changes nothing. Each finding says what it is good for, so that a missing one can be judged: nothing but the
first group is needed for the main job.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from replicator.cli.show import json_option, print_json

_LIBRARIES = ("numpy", "xxhash", "zstandard", "google_crc32c", "msgspec", "cryptography", "kafka")
_TARGETS = ("dm_mod", "dm_thin_pool", "nbd")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that this host has or hasn't, and what for."""

    needed: bool
    name: str
    ok: bool
    found: str
    good_for: str
    mend: str | None = None


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Say what this host can do, and why not.

    \b
    replicator doctor
    replicator doctor --json
    """
    findings = [*_needed(), *_tools(), *_kernel()]
    broken = [finding for finding in findings if finding.needed and not finding.ok]
    if as_json:
        print_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
        return 1 if broken else 0
    for finding in findings:
        mark = "yes" if finding.ok else "NO " if finding.needed else "-  "
        click.echo(f"{mark}  {finding.name:22} {finding.found}")
        if not finding.ok:
            click.echo(f"       {finding.good_for}{'; ' + finding.mend if finding.mend else ''}")
    click.echo("this host can do the main job" if not broken else f"{len(broken)} needed things are missing")
    return 1 if broken else 0


def _needed() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding(
        True, "Python", sys.version_info >= (3, 11), version, "runs everything", "install Python 3.11 or newer"
    )
    for name in _LIBRARIES:
        there = importlib.util.find_spec(name) is not None
        mend = f"in replicator's checkout: {sys.executable} -m pip install ."
        yield Finding(True, f"library {name}", there, "there" if there else "missing", "part of the main job", mend)
    nowait = hasattr(os, "RWF_NOWAIT")
    yield Finding(
        True, "preadv2 RWF_NOWAIT", nowait, "there" if nowait else "missing", "serving without waiting for disks"
    )
    cpus = len(os.sched_getaffinity(0))
    yield Finding(False, "processors", cpus >= 2, str(cpus), "one serves disks while the other compresses")


def _tools() -> Iterator[Finding]:
    for name, good_for, package in (
        ("thin_check", "a second opinion on a pool's metadata", "thin-provisioning-tools"),
        ("nbd-client", "attaching an export as /dev/nbdN", "nbd-client"),
        ("qemu-img", "copying and comparing images over NBD", "qemu-utils"),
        ("mkfs.ext4", "real files in replicator demo", "e2fsprogs"),
        ("fsfreeze", "file-system consistent points by hooks", "util-linux"),
        ("ssh", "a log on another host", "openssh-client"),
    ):
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        yield Finding(False, name, path is not None, path or "not found", good_for, f"apt-get install {package}")


def _kernel() -> Iterator[Finding]:
    yield Finding(False, "kernel", True, platform.release(), "")
    for name in _TARGETS:
        there = Path("/sys/module", name).exists()
        good_for = "attaching an export as a block device" if name == "nbd" else "kernel pools as source or replica"
        found = "loaded" if there else "not loaded"
        yield Finding(False, f"module {name}", there, found, good_for, f"modprobe {name.replace('_', '-')}, as root")
    root = os.geteuid() == 0
    yield Finding(False, "root", root, "yes" if root else "no", "block devices and mounts; the main job needs none")
