"""Judges that are written in Go: built by the machine's own Go, from the module proxy that it is set up for.

The build's caches are Go's own, so that a second checkout on one machine builds in seconds. From empty caches an S3
server takes two to six minutes.

Failure raised: DebianError, as for what comes in packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.debian import DebianError

BUILD_TIMEOUT_S = 1800


def install(module: str, folder: Path) -> None:
    """Build the program of `module` (PATH@VERSION) into `folder`."""
    go = shutil.which("go", path=os.environ.get("PATH", "") + ":/usr/local/go/bin")
    if go is None:
        raise DebianError(f"no go: install Go 1.24 or newer to build {module}")
    folder.mkdir(parents=True)
    env = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0"}
    try:
        done = subprocess.run(
            [go, "install", module], env=env, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise DebianError(f"building {module} took more than {BUILD_TIMEOUT_S} s") from late
    if done.returncode:
        raise DebianError(f"building {module} failed: {done.stderr.strip()[-400:]}")
