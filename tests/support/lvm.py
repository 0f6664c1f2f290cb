"""LVM's own commands on the guest's disks, on a real kernel: volume groups, logical volumes, thin pools.

Runs inside the guest (tests.support.guest), which has no udev: LVM makes its nodes itself.

Invariants
  L1  LVM sees the guest's ubd disks and nothing else, and keeps its files below /run.
  L2  LVM runs its own thin_check whenever it activates a thin pool, and refuses one that isn't clean.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support import guest
from tests.support.judges import find_tool

GROUP = "vg"
EXTENT = "1m"
_SETTINGS = """
devices {{ dir="/dev" types=["ubd",16] use_devicesfile=0 obtain_device_list_from_udev=0 }}
devices {{ external_device_info_source="none" }}
activation {{ udev_sync=0 udev_rules=0 monitoring=0 thin_pool_autoextend_threshold=100 }}
global {{ use_lvmpolld=0 locking_dir="/run/lock/lvm" thin_check_executable="{thin_check}" thin_repair_executable="" }}
backup {{ backup=0 archive=0 }}
"""


def prepare(*disks: Path) -> None:
    """Set LVM up for this process and its children, and make the group `vg` of these disks."""
    tool = find_tool("lvm", "lvm")
    home = Path("/run/lvm")
    home.mkdir()
    (home / "lvm.conf").write_text(_SETTINGS.format(thin_check=find_tool("kernel", "thin_check").path))
    os.environ["LVM_SYSTEM_DIR"] = str(home)
    os.environ["LVM_SUPPRESS_FD_WARNINGS"] = "1"
    os.environ["LD_LIBRARY_PATH"] = f"{os.environ['LD_LIBRARY_PATH']}:{tool.library_path}"
    os.environ["PATH"] = f"{tool.path.parent}:{os.environ['PATH']}"
    guest.run("lvm", "vgcreate", "-s", EXTENT, GROUP, *disks)


def lvm(command: str, *words: str | int | Path) -> str:
    """One command that changes something, without questions: lvm("lvextend", "-L", "+1m", "vg/data")."""
    return guest.run("lvm", command, "--yes", *words)


def create(name: str, size: str) -> Path:
    """A linear volume, zeroed at its beginning; its node."""
    lvm("lvcreate", "-L", size, "-n", name, GROUP)
    return node(name)


def node(name: str) -> Path:
    """Where a volume's node stands."""
    return Path("/dev") / GROUP / name


def facts(name: str, *fields: str) -> tuple[str, ...]:
    """What `lvs` says of a volume, be it a hidden one."""
    told = json.loads(guest.run("lvm", "lvs", "--reportformat", "json", "-o", ",".join(fields), f"{GROUP}/{name}"))
    row = told["report"][0]["lv"][0]
    return tuple(row[field] for field in fields)
