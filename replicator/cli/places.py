"""Where commands work: POOL as a parameter and opened, NAME in it, and what grows a device.

POOL      a directory; `dm:NAME` and `lvm:VG/POOL` name pools that the kernel runs, which these commands don't reach
GROWTH    `10GiB`: to that size; `+10GiB`: by that much
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.errors import UsageError
from replicator.units import parse_size

if TYPE_CHECKING:
    from replicator.pool.opening import OwnedPool
    from replicator.pool.remote import RemotePool


class PoolType(click.ParamType[Path, Any]):
    """A pool's directory."""

    name = "pool"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = str(value)
        if text.startswith(("dm:", "lvm:")):
            raise UsageError(
                f"{text} is a pool that the kernel runs: this release works on pools in directories only",
                mend="to read it, deactivate it, and name a directory with links `metadata` and `data` to its devices",
            )
        if not text or "\0" in text:
            self.fail("a pool is a directory", param, ctx)
        return Path(text)


@dataclass(frozen=True, slots=True)
class Growth:
    """A size to grow to, or (`by`) to grow by."""

    size_bytes: int
    by: bool

    def total(self, now_bytes: int) -> int:
        """The size that is meant, of what has `now_bytes`."""
        return now_bytes + self.size_bytes if self.by else self.size_bytes


class GrowthType(click.ParamType[Growth, Any]):
    """SIZE or +SIZE."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Growth:
        if isinstance(value, Growth):
            return value
        text = str(value)
        try:
            return Growth(parse_size(text.removeprefix("+")), text.startswith("+"))
        except UsageError as error:
            self.fail(f"{error.message}{'; ' + error.mend if error.mend else ''}", param, ctx)


POOL = PoolType()
GROWTH = GrowthType()
pool_argument = click.argument("path", metavar="POOL", type=POOL)
name_argument = click.argument("name", metavar="NAME")


def opened_pool(path: Path) -> closing[OwnedPool | RemotePool]:
    """The pool for a command that changes it, by itself or through its owner; what it waits for is told on stderr."""
    from replicator.pool.opening import open_pool

    return closing(open_pool(path, waiting=lambda what: click.echo(what, err=True)))
