"""What a cut of several volumes came to: the restore points, and the volumes that couldn't be published, with why.

Made by a round here or by the running agent, shown by the commands. One volume that is refused keeps nobody else from
being published; the exit code is that of the worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replicator.errors import ReplicatorError

Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """`points` and `failed` as plain objects; see points_of and failed_of."""

    points: list[Plain]
    failed: tuple[Plain, ...] = ()

    @classmethod
    def answered(cls, answer: Mapping[str, Any]) -> Published:
        """As a running agent says it."""
        return cls(list(answer["points"]), tuple(answer.get("failed", ())))

    @property
    def exit_code(self) -> int:
        """0 where all went well."""
        return max((int(each["exit_code"]) for each in self.failed), default=0)


def failed_of(volume: str, error: ReplicatorError) -> Plain:
    """A volume that couldn't be published."""
    mend, kind = error.mend, error.kind
    return {"volume": volume, "kind": kind, "exit_code": error.exit_code, "message": error.message, "mend": mend}
