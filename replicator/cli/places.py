"""Where commands work, as parameters: POOL, and what grows a device.

POOL      a directory; `dm:NAME` and `lvm:VG/POOL` name pools that the kernel runs, which these commands don't reach
GROWTH    `10GiB`: to that size; `+10GiB`: by that much
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from replicator.errors import UsageError
from replicator.units import parse_size


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
