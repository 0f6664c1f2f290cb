"""What commands say beside the points that they show or take: damage, a log that is away, two histories.

Over repository/offer; for cli/points, restore, serve and `volume clone`, so that all say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replicator.errors import ConflictError, DamageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from replicator.history.points import RestorePoint
    from replicator.repository.offer import Offer
    from replicator.repository.source import OpenedPoint, Source

from_pool_option = click.option(
    "--from-pool",
    is_flag=True,
    help="The pool alone: its snapshots, whatever its log says; what wasn't kept as a snapshot can't be had.",
)


accept_gap_option = click.option(
    "--accept-gap", is_flag=True, help="Take the newest point for a time beyond what is known to be complete."
)


def tell_taken(source: Source, taken: OpenedPoint, asked: str, zone: tzinfo) -> None:
    """Which point `asked` came to, and what is to be known of it, on stderr."""
    warn(source.offer(taken.volume), zone, taken.point)
    click.echo(f"{asked} is {taken.point.describe(zone)}", err=True)


def warn(offer: Offer, zone: tzinfo, point: RestorePoint) -> None:
    """What is to be known of a point that is taken out of this offer, on stderr."""
    if offer.problem is not None:
        click.echo(f"only what the pool holds can be had: {offer.problem.message}", err=True)
    if offer.unkept is not None:
        _say_unkept(offer, zone)
    if offer.damage is not None:
        click.echo(
            f"the log of {offer.volume.name} is damaged behind what can be had: {offer.damage.message}", err=True
        )
    if offer.divided is not None:
        owner = {"pool": "the pool's", "log": "the log's"}.get(offer.history_of(point) or "", "of both")
        click.echo(f"{offer.divided.message(zone)}; this point is {owner}", err=True)


def _say_unkept(offer: Offer, zone: tzinfo) -> None:
    assert offer.unkept is not None
    what = f"{offer.volume.name} itself is at {offer.unkept.describe(zone)}"
    copied = f"replicator volume clone POOL {offer.volume.name} NEW copies it as it is now"
    click.echo(f"{what}, of which no snapshot was kept; {copied}", err=True)


def tell_short(offers: Sequence[Offer], zone: tzinfo) -> None:
    """Of a list: why it hasn't what it might have, and how far pools themselves are beyond it, on stderr."""
    for problem in dict.fromkeys(offer.problem.message for offer in offers if offer.problem is not None):
        click.echo(f"only what the pool holds is listed: {problem}", err=True)
    for offer in offers:
        if offer.unkept is not None:
            _say_unkept(offer, zone)
        if offer.trimmed is not None:
            click.echo(f"{offer.trimmed}; a replica's pool has points", err=True)


def raise_worst(offers: Sequence[Offer], zone: tzinfo) -> None:
    """After a list: all that keeps it from being what there is, as one error: damage's, else two histories'."""
    damages = [(each.volume.name, each.damage) for each in offers if each.damage is not None]
    divided = [each.divided for each in offers if each.divided is not None]
    if len(damages) + len(divided) < 2:
        for error in (*(damage for _, damage in damages), *(each.error(zone=zone) for each in divided)):
            raise error
        return
    told = [*(f"{name}: {damage.message}" for name, damage in damages), *(each.message(zone) for each in divided)]
    if damages:
        raise DamageError("; ".join(told), mend=damages[0][1].mend)
    raise ConflictError("; ".join(told), mend=divided[0].mend)
