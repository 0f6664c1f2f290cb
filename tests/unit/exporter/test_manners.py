"""Peers that hang up in the middle again and again wait; others don't."""

from __future__ import annotations

import socket
import time

from replicator.exporter.manners import BAD_AT_ONCE, LONGEST_S, PAUSE_S, PEERS_MAX, Manners, peer_of
from replicator.nbd import protocol as p
from tests.support.manual_clock import ManualClock
from tests.support.nbd_ground import Serving


def test_some_bad_endings_cost_nothing_and_more_wait() -> None:
    clock = ManualClock()
    manners = Manners(clock.monotonic)
    for _ in range(BAD_AT_ONCE):
        assert manners.wait_s("a") == 0
        manners.ended_badly("a")
    assert manners.wait_s("a") == 0
    manners.ended_badly("a")
    assert manners.wait_s("a") == PAUSE_S
    for _ in range(1000):
        manners.ended_badly("a")
    assert manners.wait_s("a") == LONGEST_S and manners.wait_s("b") == 0
    clock.advance(LONGEST_S)
    assert manners.wait_s("a") == 0


def test_peers_are_bounded_and_the_oldest_goes() -> None:
    manners = Manners(ManualClock().monotonic)
    for _ in range(BAD_AT_ONCE + 1):
        manners.ended_badly("first")
    for number in range(PEERS_MAX):
        manners.ended_badly(str(number))
    assert manners.wait_s("first") == 0


def test_a_wait_ends_when_the_client_goes() -> None:
    manners = Manners()
    ours, theirs = socket.socketpair()
    with ours:
        for _ in range(BAD_AT_ONCE + 9):
            manners.ended_badly(peer_of(ours))
        theirs.close()
        began = time.monotonic()
        assert not manners.admit(ours, peer_of(ours))
        assert time.monotonic() - began < LONGEST_S / 2
    assert peer_of(ours) == "gone"


def test_who_says_goodbye_never_waits(serving: Serving) -> None:
    began = time.monotonic()
    for _ in range(2 * BAD_AT_ONCE):
        with serving.client() as client:
            assert client.read(0, 512) == bytes(512)
            client.send(p.CMD_DISC)
            assert client.ended()
    assert time.monotonic() - began < LONGEST_S
