"""A real Linux kernel as a judge: Debian's user-mode-linux, an ordinary process, without root or image.

The guest's root is this machine's own file tree (hostfs), so the same Python runs inside; files given as devices
are /dev/ubda, /dev/ubdb … there. A guest script is Python text; it may import tests.support.guest, prints what it
likes, and passes with exit status 0. Its output goes to a file and not through the console, which is slow.

    boot → /init (sh): proc, sys, dev, /run · insmod dm-thin, dm-snapshot, nbd … · the script · its status · power off

Invariants
  K1  Nothing outlives `Kernel`: each guest is a session of its own, ended by its id with the context, and on time-out.
  K2  A guest that dies, hangs or panics is a failure that shows the kernel's last words; never a silent pass.
  K3  The devices' files are on the host's disk when `boot` returns: the guest syncs and powers off first.

With `network=True` a slirp4netns of the guest's own answers it: the guest is 10.0.2.100, this machine's loopback is
10.0.2.2.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.judges import BIN_FOLDERS, JUDGES, ROOT, find_tool, library_path

KERNEL = JUDGES / "kernel"
MODULES = (
    "drivers/md/dm-mod",
    "drivers/md/dm-bufio",
    "drivers/md/dm-bio-prison",
    "drivers/md/persistent-data/dm-persistent-data",
    "drivers/md/dm-thin-pool",
    "drivers/md/dm-snapshot",
    "drivers/block/nbd",
)
FAULT_MODULES = ("drivers/md/dm-flakey", "drivers/md/dm-log-writes", "drivers/md/dm-dust", "drivers/md/dm-delay")
DEVICES_MAX = 16  # ubda … ubdp
BOOT_LIMIT_S = 120.0  # 2-10 s when the machine is idle
SLIRP_READY_S = 10.0
GONE_LIMIT_S = 10.0  # a killed guest's processes are reaped by init
POLL_S = 0.01

INIT = """#!/bin/sh
export PATH={path}
export LD_LIBRARY_PATH={library_path}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
for module in {modules}; do
    {kmod}/insmod {folder}/$module.ko || echo "no module $module"
done
mkdir -p /dev/mapper
[ -e /dev/mapper/control ] || mknod /dev/mapper/control c 10 "$(sed -n 's/ device-mapper//p' /proc/misc | tr -d ' ')"
ip link set lo up
{network}
export DM_DISABLE_UDEV=1 HOME=/run PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={root} LC_ALL=C.UTF-8
cd {work}
{python} {work}/script.py >{work}/output 2>&1 </dev/null
echo $? >{work}/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""
NETWORK = "ip link set vec0 up; ip addr add 10.0.2.100/24 dev vec0; ip route add default via 10.0.2.2"


class KernelError(AssertionError):
    """The guest's script failed, or the guest did (K2)."""


@dataclass(frozen=True, slots=True)
class GuestResult:
    """How a guest's script ended."""

    status: int
    output: str
    console: str
    elapsed_s: float


class Kernel:
    """Starts guests, one after the other, with `folder` for their scripts and outputs; a context manager (K1)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._boots = 0

    def __enter__(self) -> Kernel:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            end(child)

    def boot(
        self,
        script: str,
        devices: Sequence[Path] = (),
        *,
        check: bool = True,
        network: bool = False,
        faults: bool = False,
        memory_mib: int = 512,
        limit_s: float = BOOT_LIMIT_S,
    ) -> GuestResult:
        """Run a Python script in a guest of its own; with `check`, an exit status other than 0 is a KernelError."""
        if len(devices) > DEVICES_MAX:
            raise ValueError(f"a guest takes {DEVICES_MAX} devices, not {len(devices)}")
        self._boots += 1
        work = self._folder / f"boot-{self._boots}"
        work.mkdir()
        (work / "script.py").write_text(script)
        modules = MODULES + (FAULT_MODULES if faults else ())
        (work / "init").write_text(init_text(work, modules, NETWORK if network else ""))
        (work / "init").chmod(0o755)
        arguments = [f"ubd{'abcdefghijklmnop'[index]}={path}" for index, path in enumerate(devices)]
        if network:
            arguments.append(f"vec0:transport=bess,dst={self._start_slirp(work)},depth=128,gro=1")
        result = self._run(work, [f"mem={memory_mib}M", *arguments], limit_s)
        if check and result.status:
            raise KernelError(f"the guest's script ended with {result.status}:\n{result.output[-4000:]}")
        return result

    def _run(self, work: Path, arguments: list[str], limit_s: float) -> GuestResult:
        began = time.monotonic()
        linux = KERNEL / "usr/bin/linux.uml"
        root = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={work}/init"]
        console = ["con=null", "con0=fd:0,fd:1", "quiet", f"uml_dir={work}/", "umid=uml"]
        with (work / "console").open("wb") as out:
            guest = self._start([str(linux), *root, *console, *arguments], out.fileno())
            with contextlib.suppress(subprocess.TimeoutExpired):
                guest.wait(limit_s)
            late = guest.poll() is None
            end(guest)
        said = (work / "console").read_text(errors="replace")
        output = _text(work / "output")
        status = _text(work / "status").strip()
        if late or not status:
            what = f"did not end within {limit_s:.0f} s" if late else "died"
            raise KernelError(f"the guest {what}\nconsole: {said[-3000:]}\noutput: {output[-3000:]}")
        return GuestResult(int(status), output, said, time.monotonic() - began)

    def _start(self, argv: list[str], out: int) -> subprocess.Popen[bytes]:
        env = {**os.environ, "LD_LIBRARY_PATH": library_path(KERNEL), "TMPDIR": str(self._folder)}
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        self._children.append(child)
        return child

    def _start_slirp(self, work: Path) -> Path:
        """A network of the guest's own; its socket's path, which has room for 107 bytes."""
        path = work / "net"
        slirp = find_tool("kernel", "slirp4netns")
        with (work / "slirp").open("wb") as out:
            child = self._start(slirp.argv("--target-type=bess", path), out.fileno())
        deadline = time.monotonic() + SLIRP_READY_S
        while not path.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise KernelError(f"slirp4netns: {_text(work / 'slirp')}")
            time.sleep(POLL_S)
        return path


def init_text(work: Path, modules: Sequence[str], network: str) -> str:
    """The guest's /init."""
    folders = sorted((KERNEL / "usr/lib/uml/modules").glob("*/kernel"))
    if not folders:
        raise KernelError("user-mode-linux has no modules: run `make judges`")
    insmod = work / "kmod"
    insmod.mkdir()
    (insmod / "insmod").symlink_to(find_tool("kernel", "kmod").path)
    places = [str(KERNEL / folder) for folder in BIN_FOLDERS]
    values = {
        "path": ":".join([*places, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
        "library_path": library_path(KERNEL),
        "modules": " ".join(modules),
        "kmod": insmod,
        "folder": folders[-1],
        "work": work,
        "root": ROOT,
        "python": sys.executable,
    }
    return INIT.format(
        network=network,
        **{key: shlex.quote(str(value)) if key != "modules" else value for key, value in values.items()},
    )


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and its whole session, and wait until none of it is left (K1)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + GONE_LIMIT_S
    while is_alive(child.pid):
        if time.monotonic() > deadline:
            raise KernelError(f"processes of group {child.pid} outlive SIGKILL")
        time.sleep(POLL_S)


def is_alive(group: int) -> bool:
    """Whether any process of the group is left, be it a zombie that init hasn't reaped."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
