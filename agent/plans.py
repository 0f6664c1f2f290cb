"""What a configuration comes to for a pool: which volumes are cut together, when, and with what; and points by name.

Asked by the daemon, at its start and whenever volumes came or went. Pure.

Invariants
  N1  A name that nothing has keeps nothing else from being published: a group is those of its volumes that are there,
      and each cut of it names them (events: GroupCut). `absent_names` says which are missing.
  N2  Where a configuration comes to no volume at all, NotFoundError: there is nothing to publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from agent.config import AgentConfig
from agent.cut import published_volumes
from agent.farewell import gone_volumes
from agent.schedule import Every
from agent.worker import Plan
from replicator.errors import FormatError, NotFoundError, UsageError
from replicator.events.values import StateName
from replicator.log.pace import beacon_interval_s
from replicator.pool.catalogue_schema import Role, Volume
from replicator.pool.view import CatalogueView


def plans_of(config: AgentConfig, view: CatalogueView) -> list[Plan]:
    """How the pool's volumes are cut: the groups first, then every other volume by itself, then those that went."""
    default = Plan(
        (),
        "",
        config.schedule,
        config.hooks,
        when_full=config.when_full,
        attest_s=config.attest_s,
        beacon_s=beacon_interval_s(config.log),
    )
    plans, taken = [], set()
    for group in config.groups:
        members = tuple(_there(view, group.volumes))
        taken |= set(members)
        if members:
            plans.append(replace(default, members=members, name=group.name, schedule=group.schedule(config.schedule)))
    if config.groups and not config.volumes:
        there = {each.uuid for each in view.volumes if view.position(each.uuid, Role.APPLIED) is None}
        singles = sorted(there - taken, key=lambda each: each.int)
    else:
        named = _there(view, config.volumes) or ([] if plans else published_volumes(view, config.volumes))
        singles = [uuid for uuid in named if uuid not in taken]
    if not plans and not singles:
        published_volumes(view, [name for name, _ in absent_names(config, view)])  # N2: tells what there is
    farewells = [replace(default, members=(gone.volume,), schedule=Every()) for gone in gone_volumes(view)]
    return [*plans, *(replace(default, members=(uuid,)) for uuid in singles), *farewells]


def absent_names(config: AgentConfig, view: CatalogueView) -> list[tuple[str, str]]:
    """The (name, group) that the configuration names and the pool doesn't have; without a group: of `volumes`."""
    named = [(name, group.name) for group in config.groups for name in group.volumes]
    named += [(name, "") for name in config.volumes if name not in {each for each, _ in named}]
    return [(name, group) for name, group in dict.fromkeys(named) if not _there(view, [name])]


def is_left_out(config: AgentConfig, volume: Volume) -> bool:
    """Whether the configuration names volumes, and not this one."""
    named = {*config.volumes, *(name for group in config.groups for name in group.volumes)}
    return bool(config.volumes) and not named & {volume.name, str(volume.uuid)}


def _there(view: CatalogueView, names: Sequence[str]) -> list[UUID]:
    """The volumes of these names that there are."""
    found = []
    for name in dict.fromkeys(names):
        with suppress(NotFoundError):
            found.append(view.volume(name).uuid)
    return found


def point_of(arguments: Mapping[str, Any]) -> StateName:
    """The point that the arguments name."""
    try:
        timeline, number = int(arguments.get("timeline", 1)), int(arguments["number"])
        return StateName(timeline, number, bytes.fromhex(str(arguments["digest"])))
    except (KeyError, TypeError, ValueError, FormatError):
        raise UsageError("a point is named by timeline, number and digest") from None
