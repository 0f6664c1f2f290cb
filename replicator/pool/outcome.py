"""What a change of the pool leaves for its commit to stage, and for the pool to know once it is durable.

Made by pool/applying and pool/deleting inside a commit, taken by pool/local.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from replicator.pool.changes import Change


@dataclass(slots=True)
class Outcome:
    """Catalogue rows to stage, devices that are gone; `staged` False: only mappings changed, the id stays as it is."""

    changes: list[Change] = field(default_factory=list)
    deleted: tuple[int, ...] = ()
    transaction_id: int = 0
    staged: bool = True
