"""Which log a pool belongs to: a setting of its catalogue, written by whoever publishes or follows, read by restores.

setting   value
log       the log's URL, absolute
"""

from __future__ import annotations

from replicator.log.opening import log_url
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import Put
from replicator.pool.interface import Pool, StaleSwitchError, Switch
from replicator.pool.view import CatalogueView

LOG_SETTING = "log"


def log_rows(view: CatalogueView, url: str) -> tuple[Put, ...]:
    """What the catalogue lacks to name the log."""
    wanted = log_url(url)
    return () if view.setting(LOG_SETTING) == wanted else (Put(Setting(LOG_SETTING, wanted)),)


def knows_log(view: CatalogueView, url: str) -> bool:
    """Whether the pool was published to that log, or followed it, before."""
    return not log_rows(view, url)


def remember_log(pool: Pool, url: str) -> None:
    """Let the pool's catalogue name the log; nothing is written where it does already."""
    while rows := log_rows(pool.view(), url):
        try:
            pool.switch(Switch(changes=rows, expected_id=pool.view().at_id))
        except StaleSwitchError:
            continue
        return
