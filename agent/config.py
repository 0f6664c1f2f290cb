"""What an agent is told: a TOML file, or flags; one value for both.

    [[group]]         volumes that are cut together
    [tls]             passed on to the exporter's TCP listeners
    [hooks]           commands around each cut

Unknown keys are refused with those that are known; every value is read once, here, and has its unit.

Failures: UsageError, naming the file, the key and what was expected; NotFoundError for a file that isn't there.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.hooks import Hooks
from agent.relief import WhenFull
from agent.schedule import Cron, Every, Schedule
from replicator.errors import NotFoundError, UsageError
from replicator.history.names import check_name
from replicator.history.points import Consistency
from replicator.log.pace import default_interval_s
from replicator.units import parse_duration, parse_size

CONFIG_BYTES_MAX = 1 << 20
"""A file of a thousand groups is a tenth of that."""

LEVEL_MAX = 19
ATTEST_S_MIN = 60.0
THREADS_MAX = 64
DEFAULT_PATH = Path("/etc/replicator/agent.toml")

_TOP = (
    *("pool", "log", "listen", "interval", "cron", "volumes", "bandwidth", "level", "threads", "socket_group"),
    *("when_full", "attest", "adopt"),
)
_TABLES = {
    "tls": ("certificate", "key", "ca", "required"),
    "hooks": ("freeze", "thaw", "limit", "consistency"),
    "group": ("name", "volumes", "interval", "cron"),
}


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """Volumes with one cut; without an interval or cron expression of their own, as the agent says."""

    name: str
    volumes: tuple[str, ...]
    interval_s: float | None = None
    cron: str | None = None

    def schedule(self, default: Schedule) -> Schedule:
        """When they are cut."""
        return _schedule(self.interval_s, self.cron) or default


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent needs to know; `volumes` empty: all that aren't in a group.

    Without `interval_s` and `cron` the kind of log decides (log/pace). `attest_s` None: volumes are never attested.
    `adopt`: the exporter is another unit's to start; the agent waits for it.
    """

    pool: Path
    log: str
    listen: tuple[str, ...] = ()
    interval_s: float | None = None
    cron: str | None = None
    volumes: tuple[str, ...] = ()
    bandwidth_bytes_s: int | None = None
    level: int = 1
    threads: int = 2
    socket_group: str | None = None
    tls: Mapping[str, str] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=Hooks)
    groups: tuple[GroupConfig, ...] = ()
    when_full: WhenFull = WhenFull.DROP_BASE
    attest_s: float | None = None
    adopt: bool = False

    def __post_init__(self) -> None:
        for schedule in self.schedules:
            assert schedule.late_s > 0, "each was made, and so checked"
        if self.attest_s is not None and self.attest_s < ATTEST_S_MIN:
            raise UsageError(f"attesting every {self.attest_s:g} s is too often", mend="take 1m or more; 7d is usual")
        if self.bandwidth_bytes_s is not None and self.bandwidth_bytes_s < 1:
            raise UsageError("a bandwidth of nothing publishes nothing", mend="leave it out for no limit")
        if not 1 <= self.level <= LEVEL_MAX:
            raise UsageError(f"compression level {self.level} isn't between 1 and {LEVEL_MAX}")
        if not 1 <= self.threads <= THREADS_MAX:
            raise UsageError(f"{self.threads} threads aren't between 1 and {THREADS_MAX}")
        members = [name for group in self.groups for name in group.volumes]
        twice = sorted({name for name in members if members.count(name) > 1})
        if twice:
            raise UsageError(f"volume {twice[0]} is in two groups", mend="a volume is cut with one group only")

    @property
    def schedule(self) -> Schedule:
        """When volumes are cut that are in no group; UsageError for one that can't be."""
        return _schedule(self.interval_s, self.cron) or Every(default_interval_s(self.log))

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """That of the volumes in no group, and each group's."""
        return (self.schedule, *(group.schedule(self.schedule) for group in self.groups))

    def effective(self) -> dict[str, Any]:
        """What it comes to, as plain objects: `config show --effective`."""
        plain = dataclasses.asdict(self)
        return {**plain, "pool": str(self.pool), "tls": dict(self.tls), "schedule": str(self.schedule)}


def _schedule(interval_s: float | None, cron: str | None) -> Schedule | None:
    if interval_s is not None and cron is not None:
        raise UsageError("an interval and a cron expression exclude each other", mend="give one of them")
    if cron is not None:
        return Cron(cron)
    return None if interval_s is None else Every(interval_s)


def load_config(path: Path) -> AgentConfig:
    """The configuration in the TOML file `path`."""
    try:
        data = path.read_bytes()[: CONFIG_BYTES_MAX + 1]
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", mend=f"replicator init agent --to {path}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise UsageError(f"{path} has more than {CONFIG_BYTES_MAX} bytes")
    try:
        tables = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} isn't TOML: {error}") from None
    try:
        return config_of(tables)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", mend=error.mend) from None


def config_of(tables: Mapping[str, Any]) -> AgentConfig:
    """The configuration that the parsed `tables` say."""
    _refuse_unknown("", tables, (*_TOP, *_TABLES))
    reader = _Reader("", tables)
    return AgentConfig(
        pool=Path(reader.required("pool")),
        log=reader.required("log"),
        listen=reader.texts("listen"),
        interval_s=reader.optional_duration("interval"),
        cron=reader.text("cron"),
        volumes=reader.texts("volumes"),
        bandwidth_bytes_s=reader.size("bandwidth"),
        level=reader.number("level", 1),
        threads=reader.number("threads", 2),
        socket_group=reader.text("socket_group"),
        tls=_tls(reader.table("tls")),
        hooks=_hooks(reader.table("hooks")),
        groups=tuple(_group(table) for table in reader.tables("group")),
        when_full=_when_full(reader.text("when_full") or WhenFull.DROP_BASE),
        attest_s=reader.optional_duration("attest"),
        adopt=reader.flag("adopt"),
    )


def _tls(reader: _Reader) -> dict[str, str]:
    found = {key: reader.text(key) for key in ("certificate", "key", "ca")}
    tls = {key: value for key, value in found.items() if value is not None}
    if reader.flag("required"):
        tls["required"] = "yes"
    return tls


def _hooks(reader: _Reader) -> Hooks:
    freeze, thaw = reader.texts("freeze"), reader.texts("thaw")
    if bool(freeze) != bool(thaw):
        raise UsageError("hooks: freeze and thaw come together", mend="give both, each a list: command and arguments")
    worth = reader.text("consistency") or Consistency.FILESYSTEM
    if worth not in (Consistency.FILESYSTEM, Consistency.APPLICATION):
        raise UsageError(f"hooks: consistency {worth!r} isn't filesystem or application")
    return Hooks(freeze, thaw, reader.duration("limit", 10.0), Consistency(worth))


def _when_full(word: str) -> WhenFull:
    try:
        return WhenFull(word)
    except ValueError:
        raise UsageError(f"when_full {word!r} is neither {' nor '.join(WhenFull)}") from None


def _group(reader: _Reader) -> GroupConfig:
    volumes = reader.texts("volumes")
    if not volumes:
        raise UsageError("a group has volumes", mend='[[group]] name = "db", volumes = ["data", "wal"]')
    name = check_name(reader.required("name"))
    return GroupConfig(name, volumes, reader.optional_duration("interval"), reader.text("cron"))


@dataclass(frozen=True, slots=True)
class _Reader:
    """One table, and typed looks into it; UsageError names the key."""

    where: str
    table_: Mapping[str, Any]

    def _wrong(self, key: str, expected: str) -> UsageError:
        found = self.table_[key]
        return UsageError(f"{self.where}{key}: expected {expected}, found {found!r}"[:500])

    def text(self, key: str) -> str | None:
        value = self.table_.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise self._wrong(key, "a text in quotes")
        return value

    def required(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise UsageError(f"{self.where}{key} is missing", mend=f'add {key} = "..."')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.table_.get(key, [])
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self._wrong(key, "a list of texts in quotes")
        return tuple(value)

    def number(self, key: str, default: int) -> int:
        value = self.table_.get(key, default)
        if type(value) is not int:
            raise self._wrong(key, "a whole number")
        return value

    def flag(self, key: str) -> bool:
        value = self.table_.get(key, False)
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def duration(self, key: str, default_s: float) -> float:
        value = self.text(key)
        return default_s if value is None else parse_duration(value)

    def optional_duration(self, key: str) -> float | None:
        value = self.text(key)
        return None if value is None else parse_duration(value)

    def size(self, key: str) -> int | None:
        value = self.text(key)
        return None if value is None else parse_size(value.removesuffix("/s")) or None

    def table(self, key: str) -> _Reader:
        value = self.table_.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, f"a table: [{key}]")
        _refuse_unknown(f"{key}.", value, _TABLES[key])
        return _Reader(f"{key}.", value)

    def tables(self, key: str) -> list[_Reader]:
        value = self.table_.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._wrong(key, f"tables: [[{key}]]")
        for each in value:
            _refuse_unknown(f"{key}.", each, _TABLES[key])
        return [_Reader(f"{key}.", each) for each in value]


def _refuse_unknown(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(f"unknown key {where}{unknown[0]}", mend=f"known are: {', '.join(known)}")


TEMPLATE = """\
# Replicator's agent: cuts the volumes of a pool, and publishes what changed. `replicator config check` reads this file.

pool = "/srv/replicator/pool"
log = "/srv/replicator/log"                   # a directory; other places by their URL
listen = ["unix:/run/replicator/nbd.sock"]    # where clients reach the volumes over NBD; or tcp:HOST:10809
interval = "1s"                               # between two cuts: what may be lost; or, instead, cron = "0 2 * * *"
# volumes = ["vm1"]                           # only these; all others are left alone: status names them
# bandwidth = "50MiB"                         # a second, at most, to the log
# level = 1                                   # zstd; 3 saves 3 % for half as much time again
# threads = 2                                 # that hash and compress
# when_full = "drop-base"                     # or stop-writes: what gives way in a low pool while the log is away
# attest = "7d"                               # how often replicas are given hashes of the whole volume, to find drift
# adopt = true                                # wait for an exporter that another unit starts, and start none
# socket_group = "replicator"                 # who may use the sockets besides their owner

# [tls]                                       # for tcp addresses
# certificate = "/etc/replicator/tls/server.pem"
# key = "/etc/replicator/tls/server.key"
# ca = "/etc/replicator/tls/ca.pem"
# required = true

# [hooks]                                     # around each cut; thaw is run whatever happens
# freeze = ["fsfreeze", "--freeze", "/mnt/data"]
# thaw = ["fsfreeze", "--unfreeze", "/mnt/data"]
# limit = "10s"
# consistency = "filesystem"                  # or application: what such a cut is worth

# [[group]]                                   # volumes with one cut: those that are there; status tells who is missing
# name = "database"
# volumes = ["db-data", "db-wal"]
# interval = "5s"
"""
