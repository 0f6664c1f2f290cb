"""A group's restore point: what several volumes were at one cut, as a value.

A cut of a group is published member by member, each in its own stream; a member that hadn't changed publishes nothing,
and stands in it with its last transaction. Made by repository/source, shown by `points`.

    whole        every member's transaction is there: the group can be had as of that instant
    incomplete   one isn't (yet, or any more): the others are points of their own all the same

Invariants
  U1  A member's number 0 is the volume before its first transaction: it is always there.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Member:
    """A volume's part: its transaction at the cut, and whether that can be had; `name` empty where it isn't known."""

    volume: UUID
    name: str
    number: int
    there: bool

    def __str__(self) -> str:
        return f"{self.name or self.volume}@{self.number}"


@dataclass(frozen=True, slots=True)
class GroupPoint:
    """One cut of the group `group`; `number` is the group's own, which grows from cut to cut."""

    group: UUID
    number: int
    members: tuple[Member, ...]
    labels: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether every member's transaction is there."""
        return not self.missing

    @property
    def missing(self) -> tuple[Member, ...]:
        """The members whose transactions aren't."""
        return tuple(each for each in self.members if each.number and not each.there)

    def describe(self) -> str:
        """For people: the members, and which of them are missing."""
        listed = ", ".join(map(str, self.members))
        missing = ", ".join(map(str, self.missing))
        return f"{listed}; not here: {missing}" if missing else listed
