"""`replicator agent`: run, publish, status, snapshot, pause, resume, rebase, stop.

Added to the command line by the entry point `agent` of `replicator.commands`. Modules are imported by the command that
needs them, so that help is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.places import POOL
from replicator.cli.show import DURATION, SIZE, confirm, json_option, print_json, status_code, yes_option

if TYPE_CHECKING:
    from agent.config import AgentConfig
    from agent.published import Published

STOP_S = 300.0
"""How long `agent stop` waits: an event under way, and the exporter's last commit."""

_POOL = click.argument("pool", type=POOL)


def commands() -> list[click.Command]:
    """The groups that this package adds to the command line."""
    return [agent]


@click.group()
def agent() -> None:
    """The source host: cut, publish, and what would be lost now.

    \b
    replicator agent run POOL --log LOG --listen unix:/run/nbd.sock
    replicator agent status POOL
    """


@agent.command()
@click.argument("pool", type=POOL, required=False)
@click.option("--log", "log", metavar="LOG", help="Where to publish: a directory, or ssh://, s3://, kafka://.")
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="Serve the volumes there: unix:PATH or tcp:HOST:PORT; may come again.",
)
@click.option("--interval", type=DURATION, help="Between two cuts (1s; 10s where the log is on S3).")
@click.option("--cron", metavar="EXPRESSION", help="Cut at these times instead, as in '0 2 * * *'.")
@click.option("--volume", "volumes", multiple=True, metavar="NAME", help="Only this volume; may come again.")
@click.option("--bandwidth", type=SIZE, help="Bytes a second to the log, at most.")
@click.option(
    "--when-full",
    type=click.Choice(["drop-base", "stop-writes"]),
    help="What gives way when the pool fills while the log is away: the common base, or writes (drop-base).",
)
@click.option("--attest", type=DURATION, help="How often replicas are given hashes of the whole volume (never).")
@click.option("--adopt", is_flag=True, help="Wait for an exporter that another unit starts.")
@click.option("--level", type=int, metavar="LEVEL", help="How hard zstd compresses: 1 (the default) to 19.")
@click.option("--group", "socket_group", metavar="GROUP", help="Unix group that may use the sockets.")
@click.option("--tls-certificate", metavar="FILE", help="PEM file; offers TLS on tcp addresses.")
@click.option("--tls-key", metavar="FILE", help="PEM file of its private key.")
@click.option("--tls-ca", metavar="FILE", help="PEM file; clients must show a certificate of it.")
@click.option("--tls-required", is_flag=True, help="Serve nobody in the clear.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file; flags win over it."
)
def run(**flags: Any) -> None:
    """Publish a pool's volumes until stopped.

    With --listen it starts the process that serves them, or adopts the one that has the pool; without, it publishes
    beside whoever serves them.

    \b
    replicator agent run /srv/pool --log /mnt/log --listen unix:/run/replicator/nbd.sock
    replicator agent run --config /etc/replicator/agent.toml
    """
    from agent.running import run_agent

    run_agent(_config(flags))


def _config(flags: dict[str, Any]) -> AgentConfig:
    """The file's configuration, under what the flags say."""
    from dataclasses import replace

    from agent.config import AgentConfig, load_config
    from agent.relief import WhenFull
    from replicator.errors import UsageError

    path, pool, log = flags["config_path"], flags["pool"], flags["log"]
    if path is None and (pool is None or log is None):
        raise UsageError("an agent needs a pool and a log", mend="POOL --log LOG, or --config FILE")
    config = load_config(path) if path is not None else AgentConfig(pool, log)
    given = {"pool": pool, "log": log, "interval_s": flags["interval"], "bandwidth_bytes_s": flags["bandwidth"]}
    given |= {name: flags[name] for name in ("cron", "level", "socket_group", "listen", "volumes")}
    given |= {"when_full": WhenFull(flags["when_full"]) if flags["when_full"] else None, "attest_s": flags["attest"]}
    given |= {"adopt": flags["adopt"] or None}
    tls = {name: flags[f"tls_{name}"] for name in ("certificate", "key", "ca") if flags[f"tls_{name}"]}
    if flags["tls_required"]:
        tls["required"] = "yes"
    given["tls"] = tls or None
    changes: dict[str, Any] = {name: value for name, value in given.items() if value not in (None, ())}
    if (flags["interval"] is None) != (flags["cron"] is None):  # one of them on the command line replaces the file's
        changes |= {"interval_s": flags["interval"], "cron": flags["cron"]}
    return replace(config, **changes)


@agent.command()
@_POOL
@click.option(
    "--log", "log", metavar="LOG", required=True, help="Where to publish: a directory, or ssh://, s3://, kafka://."
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="A label of the restore point; may come again.")
@json_option
def publish(pool: Path, log: str, names: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> int:
    """Make one cut, publish it, and end: the backup job for cron.

    Where an agent runs, it is asked to. A job under a label that was killed is finished by the same command. Whether an
    older point has the label isn't looked for in the log: `points create` does. A volume that is refused keeps no other
    from being published; the exit code is that of the worst.

    \b
    replicator agent publish /srv/pool --log /mnt/log
    """
    from agent.job import publish_once

    return _show_published(publish_once(pool, log, names, labels), as_json)


@agent.command()
@_POOL
@json_option
def status(pool: Path, as_json: bool) -> int:
    """Say what would be lost now, since when, and what mends it.

    Where no agent runs: since when nothing is published. Exit 0 only if all is well, 1 if something isn't.

    \b
    replicator agent status /srv/pool
    replicator agent status /srv/pool --json
    """
    from agent.job import status_of
    from agent.status import text

    found = status_of(pool)
    if as_json:
        print_json(found)
    else:
        click.echo(text(found))
    return status_code(found["severity"])


@agent.command()
@_POOL
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="A label of the restore point; may come again.")
@json_option
def snapshot(pool: Path, volumes: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> int:
    """Have the running agent make a cut, and wait until it is published.

    A label that a cut on its way has already is refused (exit 4). Whether an older point has it isn't looked for in the
    log: `points create` does.

    \b
    replicator agent snapshot /srv/pool
    replicator agent snapshot /srv/pool vm1 --label before-upgrade
    """
    from agent.daemon import SNAPSHOT_S
    from agent.published import Published

    arguments = {"volumes": list(volumes), "labels": list(labels)}
    return _show_published(Published.answered(_ask(pool, "snapshot", SNAPSHOT_S + 10, **arguments)), as_json)


@agent.command()
@_POOL
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@json_option
def pause(pool: Path, volumes: tuple[str, ...], as_json: bool) -> None:
    """Make no more cuts until `agent resume`; the disks go on.

    What is written meanwhile is in no log: `agent status` says PAUSED, and since when. It lasts until the agent ends.

    \b
    replicator agent pause /srv/pool
    replicator agent pause /srv/pool vm1
    """
    _show_change(pool, "pause", volumes, as_json)


@agent.command()
@_POOL
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@json_option
def resume(pool: Path, volumes: tuple[str, ...], as_json: bool) -> None:
    """Make cuts again, after `agent pause`.

    \b
    replicator agent resume /srv/pool
    """
    _show_change(pool, "resume", volumes, as_json)


@agent.command()
@_POOL
@click.argument("volume")
@click.option("--from-log", is_flag=True, help="The log's: go on behind its end, as its one publisher.")
@click.option("--new-timeline", is_flag=True, help="This pool's: go on, on a new timeline of its own.")
@click.option("--log", "log", metavar="LOG", help="The log, if the pool doesn't remember it.")
@yes_option
@json_option
def rebase(
    pool: Path, volume: str, from_log: bool, new_timeline: bool, log: str | None, yes: bool, as_json: bool
) -> None:
    """Give a pool and its log a common base again, where they differ.

    Needed when publishing is refused since the two tell different histories. Say which one goes on, by exactly one of
    --from-log and --new-timeline. What differs is found by hashes, and only that is sent.

    \b
    replicator agent rebase /srv/pool vm1 --from-log
    replicator agent rebase /srv/pool vm1 --new-timeline
    """
    from agent.job import rebase as rebased
    from replicator.errors import UsageError

    if from_log == new_timeline:
        what = "--from-log and --new-timeline exclude each other" if from_log else "which history goes on?"
        raise UsageError(what, mend="give exactly one: --from-log (the log's), or --new-timeline (this pool's)")
    told = "whoever publishes it elsewhere is fenced" if from_log else "the log's present timeline ends"
    confirm(f"{volume}: {told}. Go on?", yes)
    done = rebased(pool, log, volume, new_timeline=new_timeline)
    if as_json:
        print_json({"done": done})
    else:
        click.echo(done)


@agent.command()
@_POOL
@json_option
def stop(pool: Path, as_json: bool) -> None:
    """Stop the agent; the next start goes on where it was.

    The process that serves the disks ends too if an agent started it; one that stands on its own (`serve`) goes on.
    Returns when all that ends is gone.

    \b
    replicator agent stop /srv/pool
    """
    from agent.job import stop_agent

    stop_agent(pool, STOP_S)
    if as_json:
        print_json({"stopped": True})
    else:
        click.echo(f"the agent of {pool} has stopped")


def _ask(pool: Path, method: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
    """The running agent's answer; NotFoundError where none runs."""
    from agent.job import ask_agent

    return ask_agent(pool, method, timeout_s, **arguments)


def _show_change(pool: Path, method: str, volumes: tuple[str, ...], as_json: bool) -> None:
    from agent.status import text

    found = _ask(pool, method, STOP_S, volumes=list(volumes))
    if as_json:
        print_json(found)
    else:
        click.echo(text(found))


def _show_published(published: Published, as_json: bool) -> int:
    for each in published.failed:
        click.echo(f"{each['volume']}: {each['message']}", err=True)
        if each.get("mend"):
            click.echo(f"  {each['mend']}", err=True)
    if as_json:
        print_json(published.points)
        return published.exit_code
    for point in published.points:
        what = "in the log" if point["changed"] or point["labels"] else "nothing changed since"
        labels = f" ({', '.join(point['labels'])})" if point["labels"] else ""
        click.echo(f"{point['volume']}@{point['number']}{labels}: {what}")
    return published.exit_code
