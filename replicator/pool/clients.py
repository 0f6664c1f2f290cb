"""NBD clients of a pool's owner, to whoever would take away what they have open.

Asked by commands before something is destroyed (cli/volume), and by the owner where it happens (exporter/process, E3).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from replicator.errors import ConflictError
from replicator.pool.interface import Pool
from replicator.pool.remote import RemotePool

GOING_S = 1.0
"""How long a client may take that has said goodbye, or was killed, and isn't gone yet."""

_STEP_S = 0.05
_SHOWN = 8


def in_use(name: str, clients: Sequence[str]) -> ConflictError:
    """What is said where `clients` have the volume or snapshot `name` open."""
    counted = "1 NBD client has" if len(clients) == 1 else f"{len(clients)} NBD clients have"
    more = f" and {len(clients) - _SHOWN} more" if len(clients) > _SHOWN else ""
    return ConflictError(
        f"{counted} {name} open: {', '.join(sorted(clients)[:_SHOWN])}{more}",
        mend="unmount and disconnect there first (shut the machine down, nbd-client -d, …), then try again",
    )


def refuse_in_use(pool: Pool, dev_ids: Collection[int], name: str) -> None:
    """ConflictError while an NBD client of the pool's owner has one of these devices open."""
    if not isinstance(pool, RemotePool):
        return  # nobody serves it
    end = time.monotonic() + GOING_S
    while True:
        served = [each for each in pool.exports() if each.dev_id in dev_ids]
        if any(each.clients is None for each in served):
            mend = "stop serving it first; an owner of this release tells whether anybody has it open"
            raise ConflictError(f"{name} is being served over NBD by process {pool.owner.pid}", mend=mend)
        clients = [client for each in served for client in each.clients or ()]
        if not clients:
            return
        if time.monotonic() >= end:
            raise in_use(name, clients)
        time.sleep(_STEP_S)
