"""Feeds a reader with damaged bytes for a fixed time, and holds it to what it promises.

    target = Target("beacon", seeds, run)      run(data) reads; whatever it raises that isn't a ReplicatorError is a bug
    print(fuzz(target, seconds=1.0, seed=1))

Mutations come from a corpus: bytes replaced by numbers that hurt, parts cut out, doubled, taken from another seed.
Coverage-guided runs of the same targets are tests/support/fuzz_guided.

Invariants
  Z1  An input takes at most INPUT_S of this thread's time, and MEMORY_BYTES at its peak (measured for every n-th one).
  Z2  The same seed makes the same inputs; the one that failed is in the error.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.errors import ReplicatorError

INPUT_S = 1.0
MEMORY_BYTES = 64 << 20
MEASURED_EVERY = 16  # tracemalloc makes an input several times slower
_HURTFUL = (
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    1 << 15,
    (1 << 16) - 1,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
)
_HUGE = ((1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of bytes, and inputs that it accepts."""

    name: str
    seeds: tuple[bytes, ...]
    run: Callable[[bytes], object]


@dataclass(slots=True)
class Fuzzed:
    """What a run did."""

    name: str
    inputs: int = 0
    bytes: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    largest_bytes: int = 0
    refusals: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {kind}" for kind, count in self.refusals.most_common(4))
        told = f"{self.inputs} inputs, {self.bytes} bytes, {self.accepted} accepted, refused: {refused or 'none'}"
        return f"{self.name}: {told}; slowest {self.slowest_s * 1000:.0f} ms, largest {self.largest_bytes >> 10} KiB"


def mutated(chance: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """One of the seeds, damaged in one to six places."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(data) + 1)
        how = chance.random()
        if how < 0.45:
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice((*_HURTFUL, *_HUGE, chance.getrandbits(64))) % (1 << 8 * width)
            data[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))
        elif how < 0.6:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif how < 0.7:
            del data[at : at + chance.choice((1, 4, 16, 300))]
        elif how < 0.8:
            data[at:at] = data[at : at + chance.choice((1, 8, 64))]
        elif how < 0.9:
            other = chance.choice(seeds)
            begin = chance.randrange(len(other) + 1)
            data[at : at + 16] = other[begin : begin + 16]
        else:
            del data[at:]
    return bytes(data)


def fuzz(target: Target, *, seconds: float, seed: int) -> Fuzzed:
    """Run the seeds, then damaged ones, for `seconds`; AssertionError with the input that broke a promise (Z1, Z2)."""
    chance, done = random.Random(seed), Fuzzed(target.name)
    for data in target.seeds:
        one_input(target, data, done, measured=True)
    assert done.accepted, f"{target.name} refuses all of its seeds: {done}"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        one_input(target, mutated(chance, target.seeds), done, measured=done.inputs % MEASURED_EVERY == 0)
    return done


def one_input(target: Target, data: bytes, done: Fuzzed, *, measured: bool) -> None:
    """Read one input, and hold the reader to Z1."""
    if measured:
        tracemalloc.start()
    began = time.thread_time()
    try:
        target.run(data)
        done.accepted += 1
    except ReplicatorError as error:
        assert error.message, data.hex()
        done.refusals[type(error).__name__] += 1
    except Exception as error:
        raise AssertionError(f"{target.name}: {type(error).__name__}: {error} from {data.hex()}") from error
    finally:
        took = time.thread_time() - began
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
        tracemalloc.stop()
    done.inputs += 1
    done.bytes += len(data)
    done.slowest_s = max(done.slowest_s, took)
    done.largest_bytes = max(done.largest_bytes, peak)
    assert took <= INPUT_S * (4 if measured else 1), f"{target.name}: {took:.1f} s for {data.hex()}"
    assert peak <= MEMORY_BYTES, f"{target.name}: {peak} bytes of memory for {data.hex()}"
