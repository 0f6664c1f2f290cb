"""`replicator pool mirror`: a second copy of the metadata, another one for a lost copy, or none any more.

exit code   0 done · 2 the device can't be it · 4 the pool is open elsewhere, or the device isn't empty
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import POOL
from replicator.cli.show import json_option, print_json, progress
from replicator.errors import UsageError

if TYPE_CHECKING:
    from replicator.pool.mirroring import MirrorFacts


@click.command()
@click.argument("path", metavar="POOL", type=POOL)
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="DEVICE|FILE",
    help="An empty one, or a new file, for the lost copy; else for the mirror.",
)
@click.option("--compare", is_flag=True, help="Read both, heal each from the other; then the first is copied.")
@click.option("--drop", is_flag=True, help="Go on without a mirror, with the copy that isn't lost.")
@json_option
def mirror(path: Path, target: Path | None, compare: bool, drop: bool, as_json: bool) -> None:
    """Keep a second copy of the metadata elsewhere.

    Nobody else may have POOL open meanwhile. `pool status` says how the copies are.

    \b
    replicator pool mirror /srv/pool --to /dev/vg2/meta
    replicator pool mirror /srv/pool --compare
    replicator pool mirror /srv/pool --drop
    """
    from replicator.pool.mirroring import mirror_facts

    if (target is not None) + compare + drop != 1:
        raise UsageError("one thing at a time", mend="say --to DEVICE|FILE, --compare, or --drop")
    done = _to(path, target) if target is not None else _compare(path) if compare else _drop(path)
    if as_json:
        print_json({"pool": str(path), "metadata_mirror": mirror_document(path, mirror_facts(path))})
    else:
        click.echo(f"{path}: {done}")


def _to(path: Path, target: Path) -> str:
    from replicator.pool.mirroring import add_mirror

    with progress(f"copying to {target}", _metadata_bytes(path)) as tell:
        name = add_mirror(path, target, tell)
    return f"{target} is a copy of its metadata, as {name.name}"


def _compare(path: Path) -> str:
    from replicator.pool.mirroring import compare_copies

    with progress("comparing", _metadata_bytes(path)) as tell:
        healed = compare_copies(path, tell)
    return f"both copies of its metadata are the same; {healed} block{'' if healed == 1 else 's'} healed"


def _drop(path: Path) -> str:
    from replicator.pool.mirroring import drop_mirror

    return f"its metadata is {drop_mirror(path)}, and has no mirror any more"


def _metadata_bytes(path: Path) -> int:
    file = path / "metadata"
    return file.stat().st_size if file.is_file() else 0


def mirror_document(path: Path, found: MirrorFacts | None) -> dict[str, Any] | None:
    """The mirror of `pool status --json`; None where the pool has none."""
    if found is None:
        return None
    lost = found.unused
    return {
        "copies": [str(found.first), str(found.second)],
        "lost": None if lost is None else str(lost),
        "since": _since(found) or None,
        "why": found.why or None,
        "healed_blocks": found.healed_blocks,
        "mend": None if lost is None else _mend(path, lost),
    }


def mirror_text(path: Path, found: MirrorFacts) -> str:
    """The mirror as a line of `pool status`."""
    healed = f", {found.healed_blocks} blocks healed so far" if found.healed_blocks else ""
    if found.unused is None:
        return f"both copies in use, {found.first} and {found.second}{healed}"
    since = f" since {_since(found)}" if found.since_ns else ""
    return f"{found.unused} is LOST{since} ({found.why}){healed}; {_mend(path, found.unused)}"


def _since(found: MirrorFacts) -> str:
    if not found.since_ns:
        return ""
    return datetime.fromtimestamp(found.since_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")


def _mend(path: Path, lost: Path) -> str:
    return f"make {lost} come back and open the pool, or: replicator pool mirror {path} --to DEVICE"
