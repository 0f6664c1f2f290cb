"""What a seed of the simulation of two hosts chooses before anything happens, and what it came to in the end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from receiver.apply import ApplySettings
from replicator.units import CHUNK_BYTES, GIB, KIB, MIB, SECTOR_BYTES
from tests.support.two_hosts_disasters import DISASTERS, KINDS
from tests.support.two_hosts_pool import Shape

VOLUMES = (UUID("6f1c0000-0000-4000-8000-00000000cafe"), UUID("6f1c0000-0000-4000-8000-00000000beef"))

_LONGER = 4
"""Steps more where a disaster is named: what it is about needs something that it can befall, and time to show."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed chose before anything happened."""

    seed: int
    kind: str
    volumes: tuple[UUID, ...]
    sizes: tuple[int, ...]
    group: str
    source: Shape
    replicas: tuple[Shape, ...]
    apply: ApplySettings
    gathered_bytes: int
    roll_bytes: int
    steps: int
    trouble: float
    disasters: tuple[str, ...]

    @classmethod
    def of(cls, seed: int, disasters: tuple[str, ...] | None = None) -> Plan:
        """The seed's choices, with these disasters where they are named."""
        rng = random.Random(seed)
        count = 2 if rng.random() < 0.25 else 1
        sizes = tuple(rng.randrange(1, 5) * CHUNK_BYTES + rng.choice((0, 0, SECTOR_BYTES, 5120)) for _ in range(count))
        chosen = tuple(rng.sample(DISASTERS, rng.choice((0, 1, 1, 2))))
        is_named = disasters is not None
        disasters = chosen if disasters is None else disasters
        volumes = VOLUMES[:count]
        chunks = sum(-(-size // CHUNK_BYTES) for size in sizes)
        block = rng.choice((CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 2 * CHUNK_BYTES))
        room = chunks + rng.randrange(4) if "source-full" in disasters else 4 * chunks + 8
        named = tuple((uuid, f"disk-{i}", size) for i, (uuid, size) in enumerate(zip(volumes, sizes, strict=True)))
        source = Shape(UUID(int=1), block, max(4, room * CHUNK_BYTES // block), MIB, named)
        tight = "replica-full" in disasters
        replicas = tuple(
            Shape(UUID(int=2 + i), size, chunks + 1 if tight else 6 * chunks + 16, MIB)
            for i, size in enumerate(rng.choices((CHUNK_BYTES, CHUNK_BYTES, 2 * CHUNK_BYTES), k=rng.choice((1, 1, 2))))
        )
        kind = rng.choice(("objects", "objects", "broker"))
        kinds = [KINDS[each] for each in disasters if each in KINDS]
        return cls(
            seed,
            kinds[0] if kinds else kind,
            volumes,
            sizes,
            "group" if count == 2 and rng.random() < 0.6 else "",
            source,
            replicas,
            ApplySettings(rng.choice((GIB, GIB, 64 * KIB, 128 * KIB))),
            rng.choice((4 * MIB, 1)),
            rng.choice((64 * MIB, 1)),
            rng.randrange(3, 7) + (_LONGER if is_named else 0),
            rng.choice((0.0, 0.2, 0.4)),
            disasters,
        )


@dataclass(slots=True)
class Report:
    """What a seed, or many, came to."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    unmended: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        """Sum up."""
        self.seeds += other.seeds
        for name in ("counts", "faults", "refusals", "endings", "unmended"):
            getattr(self, name).update(getattr(other, name))

    def text(self) -> str:
        """Lines for people."""
        parts = [f"{self.seeds} seeds"]
        for name in ("counts", "faults", "refusals", "unmended", "endings"):
            found = sorted(getattr(self, name).items(), key=lambda each: (-each[1], each[0]))
            parts.append(f"  {name}: " + ", ".join(f"{key} {count}" for key, count in found))
        return "\n".join(parts)
