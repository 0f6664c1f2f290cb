"""What a receiver is told: a TOML file, or flags; one value for both.

    pool, log               required
    name, register          what this receiver is called beside the log, and whether it says there how far it is
    [retention]             which restore points are kept as snapshots, and for how long

Unknown keys are refused with those that are known; every value is read once, here, and has its unit.

Failures: UsageError, naming the file, the key and what was expected; NotFoundError for a file that isn't there.
"""

from __future__ import annotations

import dataclasses
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from receiver.apply import ApplySettings
from receiver.facts import Patience
from replicator.errors import NotFoundError, UsageError
from replicator.history.names import check_name
from replicator.history.retention import RetentionPolicy
from replicator.log.pace import beacon_interval_s
from replicator.units import GIB, MIB, TIB, parse_duration, parse_size

CONFIG_BYTES_MAX = 1 << 20
"""A file of a thousand volumes is a tenth of that."""

APPLY_COMMIT_BYTES_MIN = MIB
APPLY_COMMIT_BYTES_MAX = TIB
VOLUMES_MAX = 4096
"""A thread each: beyond, several receivers share the work."""

SILENT_S_MIN = 60.0
_BEACONS_MISSED = 3  # one is late now and then
DEFAULT_PATH = Path("/etc/replicator/receiver.toml")
_LONGEST_S = 366 * 86400.0
_Keys: TypeAlias = dict[str, tuple[str, Callable[[Any], Any]]]


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    """Everything a receiver needs to know; `volumes` empty: all that the log has.

    Without `silent_after_s` the kind of log decides: three of the agent's beacons are missing, and a minute has passed.
    """

    pool: Path
    log: str
    volumes: tuple[str, ...] = ()
    apply_commit_bytes: int = GIB
    discover_every_s: float = 10.0
    retain_every_s: float = 30.0
    silent_after_s: float | None = None
    late_after_s: float = 60.0
    max_volumes: int = 256
    socket_group: str | None = None
    name: str = ""
    register: bool = True
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)

    def __post_init__(self) -> None:
        if not APPLY_COMMIT_BYTES_MIN <= self.apply_commit_bytes <= APPLY_COMMIT_BYTES_MAX:
            raise UsageError(f"apply_commit_bytes {self.apply_commit_bytes} isn't between 1MiB and 1TiB")
        if not 1 <= self.max_volumes <= VOLUMES_MAX:
            raise UsageError(f"max_volumes {self.max_volumes} isn't between 1 and {VOLUMES_MAX}")
        if self.name:
            check_name(self.name)
        for name in ("discover_every_s", "retain_every_s", "silent_after_s", "late_after_s"):
            value = getattr(self, name)
            if value is not None and not 0.1 <= value <= _LONGEST_S:
                raise UsageError(f"{name.removesuffix('_s')} isn't between 100ms and a year")

    @property
    def registered_name(self) -> str | None:
        """What it registers as beside the log: its name, else the host's; None: not at all."""
        return (self.name or socket.gethostname()) if self.register else None

    @property
    def apply(self) -> ApplySettings:
        """What followers are bound by."""
        return ApplySettings(self.apply_commit_bytes, self.retention)

    @property
    def patience(self) -> Patience:
        """What status calls late."""
        silent_s = self.silent_after_s
        if silent_s is None:
            silent_s = max(SILENT_S_MIN, _BEACONS_MISSED * beacon_interval_s(self.log))
        return Patience(silent_s, self.late_after_s)

    def effective(self) -> dict[str, Any]:
        """What it comes to, as plain objects: `config show --effective`."""
        plain = dataclasses.asdict(self)
        return {**plain, "pool": str(self.pool), "silent_after_s": self.patience.silent_after_s}


def load_config(path: Path) -> ReceiverConfig:
    """The configuration in the TOML file `path`."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", mend=f"replicator init receiver --to {path}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise UsageError(f"{path} has more than {CONFIG_BYTES_MAX} bytes")
    try:
        return config_of(tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} isn't TOML: {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", mend=error.mend) from None


def config_of(tables: Mapping[str, Any]) -> ReceiverConfig:
    """The configuration that the parsed `tables` say."""
    found = _read(tables, _KEYS, "")
    missing = next((key for key in ("pool", "log") if key not in found), None)
    if missing:
        raise UsageError(f"{missing} is missing", mend=f'add {missing} = "..."')
    return ReceiverConfig(**found)


def _read(
    tables: Mapping[str, Any], keys: Mapping[str, tuple[str, Callable[[Any], Any]]], where: str
) -> dict[str, Any]:
    """The fields that the keys of one table give; UsageError names the key."""
    found = {}
    for key, value in tables.items():
        if key not in keys:
            raise UsageError(f"unknown key {where}{key}", mend=f"known are: {', '.join(keys)}")
        name, parse = keys[key]
        try:
            found[name] = parse(value)
        except (TypeError, UsageError) as error:
            raise UsageError(f"{where}{key}: {error}", mend=getattr(error, "mend", None)) from None
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"expected a text in quotes, found {str(value)[:100]!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of texts in quotes, found {str(value)[:100]!r}")
    return tuple(map(_text, value))


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, found {str(value)[:100]!r}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, found {str(value)[:100]!r}")
    return value


def _fraction(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, found {str(value)[:100]!r}")
    return float(value)


def _duration(value: Any) -> float:
    return parse_duration(_text(value))


def _retention(value: Any) -> RetentionPolicy:
    if not isinstance(value, dict):
        raise TypeError("expected a table: [retention]")
    return RetentionPolicy(**_read(value, _RETENTION_KEYS, ""))


_RETENTION_KEYS: _Keys = {
    "materialise_every": ("materialise_every_s", _duration),
    "keep_all_days": ("keep_all_days", _number),
    "hourly_days": ("hourly_days", _number),
    "daily_days": ("daily_days", _number),
    "monthly_count": ("monthly_count", _number),
    "pressure_fraction": ("pressure_fraction", _fraction),
    "labelled_pressure_fraction": ("labelled_pressure_fraction", _fraction),
}
_KEYS: _Keys = {
    "pool": ("pool", lambda value: Path(_text(value))),
    "log": ("log", _text),
    "volumes": ("volumes", _texts),
    "apply_commit_bytes": ("apply_commit_bytes", lambda value: parse_size(_text(value))),
    "discover_every": ("discover_every_s", _duration),
    "retain_every": ("retain_every_s", _duration),
    "silent_after": ("silent_after_s", _duration),
    "late_after": ("late_after_s", _duration),
    "max_volumes": ("max_volumes", _number),
    "socket_group": ("socket_group", _text),
    "name": ("name", _text),
    "register": ("register", _flag),
    "retention": ("retention", _retention),
}

TEMPLATE = """\
# Replicator's receiver: follows a log into a replica pool. `replicator config check` reads this file.

pool = "/srv/replicator/replica"              # replicator pool create /srv/replicator/replica --size ...
log = "/srv/replicator/log"                   # a directory; other places by their URL
# volumes = ["vm1"]                           # only these; otherwise all that the log has, new ones too
# apply_commit_bytes = "1GiB"                 # a larger transaction is applied in steps, beside the replica
# silent_after = "60s"                        # without a sign of life of the agent: status warns; 3m with a bucket
# late_after = "60s"                          # a transaction that waits longer, a log away longer: status warns
# discover_every = "10s"                      # new volumes are looked for
# retain_every = "30s"                        # restore points are retired
# max_volumes = 256
# name = "site-b"                             # how agent status and the log name this receiver; the host's otherwise
# register = true                             # say beside the log how far it is: nothing is trimmed before
# socket_group = "replicator"                 # who may ask besides the owner of the process

# [retention]                                 # which restore points are kept as snapshots; any other is replayed
# materialise_every = "1m"
# keep_all_days = 1
# hourly_days = 7
# daily_days = 31
# monthly_count = 12
# pressure_fraction = 0.5                     # of the pool's metadata: from there on points are spaced out
# labelled_pressure_fraction = 0.75           # from there on labelled ones too
"""
