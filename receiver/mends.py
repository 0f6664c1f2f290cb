"""What mends a replica, with the names of this one in place of the placeholders: a command that can be run as it is.

    placeholder   stands for
    POOL          the replica's pool
    NEW_POOL      a pool beside it, which isn't there yet
    LOG           the log that is followed
    NAME          the volume

Invariants
  N1  What has no placeholder comes out as it went in; so does what was named already.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_PLACEHOLDER = re.compile(r"(?<![\w/.-])(NEW_POOL|POOL|LOG|NAME)(?![\w/.-])")


def named(mend: str, pool: Path | str, log: str, volume: str = "NAME") -> str:
    """`mend` for this replica (N1)."""
    names = {
        "POOL": shlex.quote(str(pool)),
        "NEW_POOL": shlex.quote(f"{pool}.new"),
        "LOG": shlex.quote(log),
        "NAME": volume if volume == "NAME" else shlex.quote(volume),
    }
    return _PLACEHOLDER.sub(lambda found: names[found[1]], mend)
