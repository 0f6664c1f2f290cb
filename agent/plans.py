"""What a configuration comes to for a pool: which volumes are cut together, when, and with what; and points by name.

Asked by the daemon, at its start and whenever volumes came or went. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.config import AgentConfig
from agent.cut import published_volumes
from agent.farewell import gone_volumes
from agent.schedule import Every
from agent.worker import Plan
from replicator.errors import FormatError, UsageError
from replicator.events.values import StateName
from replicator.log.pace import beacon_interval_s
from replicator.pool.catalogue_schema import Role
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
        members = tuple(view.volume(name).uuid for name in group.volumes)
        taken |= set(members)
        plans.append(replace(default, members=members, name=group.name, schedule=group.schedule(config.schedule)))
    if config.groups and not config.volumes:
        there = {each.uuid for each in view.volumes if view.position(each.uuid, Role.APPLIED) is None}
        singles = sorted(there - taken, key=lambda each: each.int)
    else:
        singles = [uuid for uuid in published_volumes(view, config.volumes) if uuid not in taken]
    farewells = [replace(default, members=(gone.volume,), schedule=Every()) for gone in gone_volumes(view)]
    return [*plans, *(replace(default, members=(uuid,)) for uuid in singles), *farewells]


def point_of(arguments: Mapping[str, Any]) -> StateName:
    """The point that the arguments name."""
    try:
        timeline, number = int(arguments.get("timeline", 1)), int(arguments["number"])
        return StateName(timeline, number, bytes.fromhex(str(arguments["digest"])))
    except (KeyError, TypeError, ValueError, FormatError):
        raise UsageError("a point is named by timeline, number and digest") from None
