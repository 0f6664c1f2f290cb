"""Which log a pool belongs to: settings of its catalogue, written by whoever publishes or follows, read by restores.

setting        value: a log's URL, absolute
log            what the pool's own volumes are published to
followed_log   where its replicas come from

A replica pool may have both: a clone that goes on after the worst day is published, mostly to a log of its own.
"""

from __future__ import annotations

from uuid import UUID

from replicator.log.opening import log_url
from replicator.pool.catalogue_schema import Role, Setting
from replicator.pool.changes import Put
from replicator.pool.interface import Pool, StaleSwitchError, Switch
from replicator.pool.view import CatalogueView

LOG_SETTING = "log"
FOLLOWED_SETTING = "followed_log"
_SETTINGS = {Role.PUBLISHED: LOG_SETTING, Role.APPLIED: FOLLOWED_SETTING}


def remembered_logs(view: CatalogueView) -> dict[Role, str]:
    """The logs that the pool knows, by what it does with them."""
    return {role: url for role, name in _SETTINGS.items() if (url := view.setting(name))}


def role_of(view: CatalogueView, volume: UUID) -> Role:
    """Which of the two logs is a volume's."""
    return Role.PUBLISHED if view.position(volume, Role.APPLIED) is None else Role.APPLIED


def remembered_log(view: CatalogueView, volume: UUID | None) -> str:
    """The log that the volume goes to or comes from, or the only one that the pool knows; empty if it knows none."""
    known = remembered_logs(view)
    role = Role.PUBLISHED if volume is None else role_of(view, volume)
    return known.get(role) or next(iter(known.values()), "")


def _rows(view: CatalogueView, role: Role, url: str) -> tuple[Put, ...]:
    """What the catalogue lacks to name the log."""
    name, wanted = _SETTINGS[role], log_url(url)
    return () if view.setting(name) == wanted else (Put(Setting(name, wanted)),)


def follows_log(view: CatalogueView, url: str) -> bool:
    """Whether the pool's receiver followed that log before."""
    return not _rows(view, Role.APPLIED, url)


def remember_log(pool: Pool, role: Role, url: str) -> None:
    """Let the pool's catalogue name the log; nothing is written where it does already."""
    while rows := _rows(pool.view(), role, url):
        try:
            pool.switch(Switch(changes=rows, expected_id=pool.view().at_id))
        except StaleSwitchError:
            continue
        return
