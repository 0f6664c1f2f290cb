"""`replicator status`: every agent and receiver that runs here, worst first.

Asks each daemon that registered (pool/registrations) over its socket (pool/daemons), all at once. Of a registration at
whose socket nobody answers, the process is dead: it is passed over. A daemon that lives and doesn't answer is not well.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.show import json_option, print_json, status_code
from replicator.errors import ReplicatorError

if TYPE_CHECKING:
    from replicator.pool.registrations import Registration

_ANSWER_S = 5.0
_ASKED_AT_ONCE = 16
_CRITICAL = 2
_WORDS = ("well", "warning", "critical")


@click.command()
@json_option
def status(as_json: bool) -> int:
    """Show every agent and receiver running here, worst first; exit 0 only if all is well, 1 if something isn't.

    \b
    replicator status
    replicator status --json
    """
    from replicator.pool.registrations import registrations

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        answers = [answer for answer in pool.map(_ask, registrations()) if answer is not None]
    answers.sort(key=lambda each: (-_severity(each), str(each.get("kind")), str(each.get("pool"))))
    worst = max(map(_severity, answers), default=0)
    if as_json:
        print_json({"ok": worst == 0, "severity": worst, "daemons": answers})
    elif not answers:
        click.echo("no agent and no receiver runs here")
        click.echo("  replicator agent run POOL --log LOG --listen ADDRESS, or replicator receiver run POOL --log LOG")
    else:
        for answer in answers:
            _show(answer)
    return status_code(worst)


def _ask(registration: Registration) -> dict[str, Any] | None:
    """What the daemon says of itself; None where it is dead."""
    from replicator.errors import UnavailableError
    from replicator.pool.daemons import ask

    who = {"kind": registration.kind, "pool": registration.pool, "pid": registration.pid}
    pool = Path(registration.pool)
    try:
        return {**who, **ask(pool, registration.socket, "status", _ANSWER_S)}
    except (ReplicatorError, OSError) as error:
        cause = error.__cause__ if isinstance(error, UnavailableError) else error
        if isinstance(cause, ConnectionRefusedError | FileNotFoundError | NotADirectoryError):
            return None
        return {**who, "severity": _CRITICAL, "headline": f"can't be asked: {error}", "mend": None}


def _severity(answer: dict[str, Any]) -> int:
    """0, 1 or 2; what says nothing of itself is not well."""
    found = answer.get("severity")
    return found if isinstance(found, int) and 0 <= found <= _CRITICAL else _CRITICAL


def _show(answer: dict[str, Any]) -> None:
    click.echo(f"{answer.get('kind')} {answer.get('pool')}: {answer.get('headline', _WORDS[_severity(answer)])}")
    if answer.get("mend"):
        click.echo(f"  {answer['mend']}")
    for volume in answer.get("volumes", []):
        if isinstance(volume, dict):
            click.echo(f"  {volume.get('volume')}: {volume.get('headline', '')}")
            if volume.get("mend"):
                click.echo(f"    {volume['mend']}")
