"""What commands say beside the points that they show or take: damage, a log that is away, two histories.

Over repository/offer; between cli/points and cli/restore, so that both say the same.
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

from_pool_option = click.option(
    "--from-pool",
    is_flag=True,
    help="The pool alone: its snapshots, whatever its log says; what wasn't kept as a snapshot can't be had.",
)


def warn(offer: Offer, zone: tzinfo, point: RestorePoint) -> None:
    """What is to be known of a point that is taken out of this offer, on stderr."""
    if offer.problem is not None:
        click.echo(f"only snapshots can be had: {offer.problem.message}", err=True)
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
    click.echo(f"{what}, of which no snapshot was kept", err=True)


def tell_unkept(offers: Sequence[Offer], zone: tzinfo) -> None:
    """Of pools that are asked alone: how far they themselves are, on stderr."""
    for offer in offers:
        if offer.unkept is not None:
            _say_unkept(offer, zone)


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
