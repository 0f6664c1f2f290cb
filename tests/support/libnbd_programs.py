"""libnbd's own C programs that take a server which already runs: built by fetch_judges from Debian's source package.

    by URI or socket   aio-parallel-load, batched-read-write, threaded-reads-and-writes, strict-structured-reads
    by socket          reads-and-writes, server-flags, aio-connect-read, aio-parallel, synch-parallel

aio-parallel and synch-parallel compare what they read with what they wrote; both want their export filled with
nbdkit's pattern (each eight bytes their own offset, big-endian). Left out: those that start nbdkit themselves.

Invariant L1: a program is built as it is, but for how long it runs (SHORTENED), and a constant that isn't there fails.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.debian import DebianError, run

SOURCE = "libnbd"
PROGRAMS = {
    "aio-parallel-load": "tests",
    "aio-parallel": "tests",
    "synch-parallel": "tests",
    "batched-read-write": "examples",
    "threaded-reads-and-writes": "examples",
    "strict-structured-reads": "examples",
    "reads-and-writes": "examples",
    "server-flags": "examples",
    "aio-connect-read": "examples",
}
SHORTENED = {
    "aio-parallel-load": ("#define RUN_TIME 10", "#define RUN_TIME 2"),
    "aio-parallel": ("#define RUN_TIME 10", "#define RUN_TIME 2"),
    "synch-parallel": ("#define RUN_TIME 10", "#define RUN_TIME 2"),
    "threaded-reads-and-writes": ("#define NR_CYCLES 10000", "#define NR_CYCLES 400"),
    "strict-structured-reads": ("i < 1000;", "i < 400;"),
}
COMPILE_TIMEOUT_S = 120


def recipe() -> str:
    """What is built, and how much shortened: where that changed, it is built again."""
    return " ".join([*PROGRAMS, *(f"({name}: {short})" for name, (_, short) in SHORTENED.items())])


def build(source: Path, root: Path) -> None:
    """Compile the programs in `source` against the libnbd unpacked in `root`, into its usr/bin; else DebianError."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise DebianError("no C compiler: install gcc and libc6-dev")
    (source / "config.h").write_text('#define PACKAGE_VERSION "judge"\n')
    for name, (whole, short) in SHORTENED.items():
        _replace(source / PROGRAMS[name] / f"{name}.c", whole, short)
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    libraries = [f"-L{folder}" for folder in sorted(root.glob("usr/lib/*-linux-gnu*"))]
    includes = [f"-I{folder}" for folder in (source, source / "common/include", root / "usr/include")]
    always = [compiler, "-O1", "-D_GNU_SOURCE", *includes]

    def compile_one(name: str) -> None:
        target = ["-o", str(root / "usr/bin" / name), str(source / PROGRAMS[name] / f"{name}.c")]
        linking = [*libraries, "-Wl,--allow-shlib-undefined", "-l:libnbd.so.0", "-lpthread"]
        run([*always, *target, *linking], COMPILE_TIMEOUT_S)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_one, PROGRAMS))


def _replace(path: Path, whole: str, short: str) -> None:
    """L1."""
    text = path.read_text()
    if text.count(whole) != 1:
        raise DebianError(f"{path.name} has {text.count(whole)} times {whole!r}: it is another release's")
    path.write_text(text.replace(whole, short))
