"""`replicator agent`: run, publish, status, snapshot, pause, resume, rebase, stop.

Added to the command line by the entry point `agent` of `replicator.commands`. Modules are imported by the command that
needs them, so that help is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.show import DURATION, SIZE, confirm, json_option, print_json

if TYPE_CHECKING:
    from agent.config import AgentConfig
    from agent.published import Published

STOP_S = 300.0
"""How long `agent stop` waits: an event under way, and the exporter's last commit."""

_STEP_S = 0.05
_POOL = click.argument("pool", type=click.Path(path_type=Path))


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
@click.argument("pool", type=click.Path(path_type=Path), required=False)
@click.option("--log", "log", help="Where to publish: a directory, or a URL.")
@click.option("--listen", multiple=True, metavar="ADDRESS", help="unix:PATH or tcp:HOST:PORT; may come again.")
@click.option("--interval", type=DURATION, help="Between two cuts (1s; 10s where the log is on S3).")
@click.option("--cron", metavar="EXPRESSION", help="Cut at these times instead, as in '0 2 * * *'.")
@click.option("--volume", "volumes", multiple=True, metavar="NAME", help="Only this volume; may come again.")
@click.option("--bandwidth", type=SIZE, help="Bytes a second to the log, at most.")
@click.option("--when-full", type=click.Choice(["drop-base", "stop-writes"]), help="What gives way (drop-base).")
@click.option("--attest", type=DURATION, help="How often replicas are given hashes of the whole volume (never).")
@click.option("--adopt", is_flag=True, help="Wait for an exporter that another unit starts.")
@click.option("--level", type=int, help="zstd level (1).")
@click.option("--group", "socket_group", help="Unix group that may use the sockets.")
@click.option("--tls-certificate", help="PEM file; offers TLS on tcp addresses.")
@click.option("--tls-key", help="PEM file of its private key.")
@click.option("--tls-ca", help="PEM file; clients must show a certificate of it.")
@click.option("--tls-required", is_flag=True, help="Serve nobody in the clear.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML file; flags win over it.")
def run(**flags: Any) -> None:
    """Publish a pool's volumes until stopped.

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
@click.option("--log", "log", required=True, help="Where to publish: a directory, or a URL.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--label", "labels", multiple=True, help="A label of the restore point; may come again.")
@json_option
def publish(pool: Path, log: str, names: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> int:
    """One cut, published, and done: the incremental backup job for cron.

    A volume that is refused keeps no other from being published; the exit code is that of the worst.

    \b
    replicator agent publish /srv/pool --log /mnt/log
    """
    from agent.job import publish_once

    return _show_published(publish_once(pool, log, names, labels), as_json)


@agent.command()
@_POOL
@json_option
def status(pool: Path, as_json: bool) -> None:
    """What would be lost now, since when, and what mends it."""
    from agent.job import status_of
    from agent.status import text

    found = status_of(pool)
    if as_json:
        print_json(found)
    else:
        click.echo(text(found))


@agent.command()
@_POOL
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@click.option("--label", "labels", multiple=True, help="A label of the restore point; may come again.")
@json_option
def snapshot(pool: Path, volumes: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> int:
    """A cut now; it is in the log when this returns."""
    from agent.daemon import SNAPSHOT_S
    from agent.published import Published

    arguments = {"volumes": list(volumes), "labels": list(labels)}
    return _show_published(Published.answered(_ask(pool, "snapshot", SNAPSHOT_S + 10, **arguments)), as_json)


@agent.command()
@_POOL
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@json_option
def pause(pool: Path, volumes: tuple[str, ...], as_json: bool) -> None:
    """No more cuts until `agent resume`; the disks go on."""
    _show_change(pool, "pause", volumes, as_json)


@agent.command()
@_POOL
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@json_option
def resume(pool: Path, volumes: tuple[str, ...], as_json: bool) -> None:
    """Cuts again."""
    _show_change(pool, "resume", volumes, as_json)


@agent.command()
@_POOL
@click.argument("volume")
@click.option("--from-log", is_flag=True, help="Go on behind the log's end; the rest is found by hashes.")
@click.option("--new-timeline", is_flag=True, help="Go on, on a timeline of this pool's own.")
@click.option("--log", "log", help="The log, if the pool doesn't remember it.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def rebase(
    pool: Path, volume: str, from_log: bool, new_timeline: bool, log: str | None, yes: bool, as_json: bool
) -> None:
    """Give a pool and a log that tell different histories a common base again.

    \b
    replicator agent rebase /srv/pool vm1 --from-log
    """
    from agent.job import rebase as rebased
    from replicator.errors import UsageError

    if from_log == new_timeline:
        what = "--from-log and --new-timeline exclude each other" if from_log else "which history goes on?"
        raise UsageError(what, mend="--from-log (the log's), or --new-timeline (both)")
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
    """A clean stop: what was sent stays, the rest is sent by the next start."""
    import time

    from agent.job import SOCKET_NAME, stop_agent
    from replicator.errors import UnavailableError
    from replicator.pool.sockets import connect

    stop_agent(pool, STOP_S)
    end = time.monotonic() + STOP_S
    while time.monotonic() < end:
        try:
            connect(pool, SOCKET_NAME, STOP_S).close()
        except UnavailableError:
            break
        time.sleep(_STEP_S)
    else:
        raise UnavailableError(f"the agent of {pool} hasn't ended after {STOP_S:.0f} s")
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
