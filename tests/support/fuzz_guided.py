"""One fuzzing target under atheris, guided by the coverage of our own code, as a process of its own.

    python -m tests.support.fuzz_guided TARGET SECONDS CORPUS TALLY

TALLY is a file of two native 64-bit numbers, how many inputs there were and how many bytes they had; it is mapped, so
that they stand there however the process ends. libFuzzer ends it with another status than 0 for what isn't a
ReplicatorError, for an input that takes more than five seconds or the process more than 2 GiB, and prints the
input.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

TALLY_BYTES = 16


def main(name: str, seconds: str, corpus: str, tally: str) -> None:
    """Fuzz for so many seconds; never returns."""
    import atheris  # type: ignore[import-untyped]  # it ships no types

    with atheris.instrument_imports(include=["replicator"]):
        from replicator.errors import ReplicatorError
        from tests.support.fuzz_targets import targets

    target, counts = targets()[name], _counts(Path(tally))

    def one(data: bytes) -> None:
        counts[0] += 1
        counts[1] += len(data)
        try:
            target.run(data)
        except ReplicatorError as error:
            assert error.message

    for number, data in enumerate(target.seeds):
        (Path(corpus) / f"seed{number}").write_bytes(data)
    limits = [
        f"-max_total_time={seconds}",
        "-timeout=5",
        "-rss_limit_mb=2048",
        "-max_len=16384",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, corpus], one)
    atheris.Fuzz()


def _counts(path: Path) -> memoryview[int]:
    path.write_bytes(bytes(TALLY_BYTES))
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), TALLY_BYTES)).cast("Q")


if __name__ == "__main__":
    main(*sys.argv[1:5])
