"""`replicator receiver`: run, status, stop, verify, forget.

Added to the command line by the entry point `receiver` of `replicator.commands`. Modules are imported by the command
that needs them, so that help is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import POOL
from replicator.cli.show import SIZE, json_option, local_zone, print_json, status_code

if TYPE_CHECKING:
    from receiver.config import ReceiverConfig

STOP_S = 300.0
"""How long `receiver stop` waits: an event under way, and its pool's last commit."""

_POOL = click.argument("pool", type=POOL)
_WORDS = {True: "equal", False: "DIFFERS", None: "NOT COMPARABLE IN FULL"}


def commands() -> list[click.Command]:
    """The groups that this package adds to the command line."""
    return [receiver]


@click.group()
def receiver() -> None:
    """The replica host: follow, apply, and how far behind.

    \b
    replicator receiver run POOL --log LOG
    replicator receiver status POOL
    """


@receiver.command()
@click.argument("pool", type=POOL, required=False)
@click.option("--log", "log", metavar="LOG", help="The log to follow: a directory, or ssh://, s3://, kafka://.")
@click.option("--volume", "volumes", multiple=True, metavar="NAME", help="Only this volume; may come again.")
@click.option("--apply-commit-bytes", type=SIZE, help="Apply larger transactions in steps of this size (1GiB).")
@click.option("--group", "socket_group", metavar="GROUP", help="Unix group that may use the sockets.")
@click.option("--name", metavar="NAME", help="What this receiver is called beside the log (as the host).")
@click.option(
    "--no-register",
    "register",
    is_flag=True,
    flag_value=False,
    default=None,
    help="Don't say beside the log how far it is: trimming won't wait for it.",
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file; flags win over it."
)
@click.option("--once", is_flag=True, help="Apply what the log has now, and end.")
@json_option
def run(once: bool, as_json: bool, **flags: Any) -> None:
    """Follow a log into a replica pool until stopped.

    \b
    replicator receiver run /srv/replica --log /mnt/log
    replicator receiver run --config /etc/replicator/receiver.toml
    """
    from receiver.running import catch_up, run_receiver

    config = _config(flags)
    if not once:
        run_receiver(config)
        return
    volumes = catch_up(config)
    if as_json:
        print_json(volumes)
    for each in () if as_json else volumes:
        click.echo(f"{each['volume']}: @{each['number']}, {each['headline']}")


def _config(flags: dict[str, Any]) -> ReceiverConfig:
    """The file's configuration, under what the flags say."""
    from dataclasses import replace

    from receiver.config import ReceiverConfig, load_config
    from replicator.errors import UsageError

    path = flags.pop("config_path")
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if path is not None:
        return replace(load_config(path), **given)
    if "pool" not in given or "log" not in given:
        raise UsageError("a receiver needs a pool and a log", mend="POOL --log LOG, or --config FILE")
    return ReceiverConfig(**given)


@receiver.command()
@_POOL
@json_option
def status(pool: Path, as_json: bool) -> int:
    """Say how far behind each replica is, and what mends it; worst first.

    Exit 0 only if all is well, 1 if something isn't, 5 if no receiver runs for POOL.

    \b
    replicator receiver status /srv/replica
    replicator receiver status /srv/replica --json
    """
    from receiver.running import ask_receiver
    from receiver.status import lines_of

    found = ask_receiver(pool, "status")
    if as_json:
        print_json(found)
    for line in () if as_json else lines_of(found, local_zone()):
        click.echo(line)
    return status_code(found["severity"])


@receiver.command()
@_POOL
@json_option
def stop(pool: Path, as_json: bool) -> None:
    """Stop the receiver, and the exporter that it started.

    Returns when both are gone. What it was applying is committed whole or not at all; the next start goes on from it.

    \b
    replicator receiver stop /srv/replica
    """
    from receiver.running import stop_receiver

    found = stop_receiver(pool, STOP_S)
    if as_json:
        print_json({"stopped": True, **found})
    else:
        click.echo(f"the receiver of {pool} has stopped")


@receiver.command()
@_POOL
@click.option("--log", "log", required=True, metavar="LOG", help="The log to compare with.")
@click.argument("points", nargs=-1, metavar="[VOLUME@POINT]...")
@json_option
def verify(pool: Path, log: str, points: tuple[str, ...], as_json: bool) -> None:
    """Read restore points again, and compare every chunk with the log.

    Without VOLUME@POINT the newest snapshot of each replica. Exit 3 where a chunk differs; exit 1 where none does, but
    the log was trimmed, and says nothing of some: such a point isn't called equal, nor remembered as verified.

    \b
    replicator receiver verify /srv/replica --log /mnt/log
    replicator receiver verify /srv/replica --log /mnt/log vm1@latest
    """
    from receiver.running import require_equal, tell_progress
    from receiver.running import verify as verify_points

    found: dict[str, Any] = verify_points(pool, log, points, tell_progress)
    if as_json:
        print_json(found)
    for each in () if as_json else found["points"]:
        word = _WORDS[each["equal"]]
        unknown = f", {each['chunks_unknown']} unknown (trimmed)" if each["chunks_unknown"] else ""
        click.echo(f"{each['volume']}@{each['number']}: {word}, {each['chunks_compared']} chunks compared{unknown}")
    if not as_json and not found["points"]:
        click.echo(f"{pool} has no replica with a point: there is nothing to verify")
    require_equal(found)


@receiver.command()
@click.argument("path", metavar="POOL|LOG")
@click.argument("volume")
@click.argument("name", metavar="RECEIVER")
@json_option
def forget(path: str, volume: str, name: str, as_json: bool) -> None:
    """Strike a receiver off the log: trimming waits for it no longer.

    RECEIVER is its name or its UUID, as `log list` and `agent status` show it. One that still runs registers again
    within a minute.

    \b
    replicator receiver forget /srv/pool vm1 site-b
    """
    from receiver.running import forget as forget_receiver

    url, gone = forget_receiver(path, volume, name)
    said = gone.said
    if as_json:
        named = {
            "receiver": said.name if said else None,
            "uuid": gone.receiver,
            "number": said.number if said else None,
        }
        print_json({"log": url, "volume": volume, **named})
    elif said is None:
        click.echo(f"{gone.receiver} is forgotten: what it said of {volume} was damaged")
    else:
        click.echo(f"{said.name} ({gone.receiver}) is forgotten: it had {volume} up to @{said.number}")
