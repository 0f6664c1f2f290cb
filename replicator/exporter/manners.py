"""Peers whose connections end badly wait before the next one is heard, so that they can't keep a server busy.

Asked by exporter/connection before its greeting. What costs a server isn't a client that stays, but one that comes
again and again, makes it work for answers that nobody takes, and is gone. A connection ends badly when it breaks off,
speaks no NBD, leaves without a word, or leaves replies behind.

    each peer has        BAD_AT_ONCE endings that cost nothing, and one more every PAUSE_S
    beyond them          its next connection waits for its turn, LONGEST_S at most
    a peer is            a process (Unix socket) or an address (TCP)

Clients that are connected, and all other peers, notice nothing.

Invariants
  M1  Memory: PEERS_MAX peers; the one that has been quiet longest is forgotten first.
  M2  A wait ends at once when the client hangs up, or the server stops.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

BAD_AT_ONCE = 4  # a client of four connections may lose them all, and come again at once
PAUSE_S = 2.0
LONGEST_S = 10.0
PEERS_MAX = 1024
_CREDENTIALS = struct.Struct("3i")


class Manners:
    """What each peer has left; threads share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at: OrderedDict[str, float] = OrderedDict()

    def ended_badly(self, peer: str) -> None:
        """One more of the peer's connections did."""
        with self._lock:
            now = self._clock()
            latest = now + BAD_AT_ONCE * PAUSE_S + LONGEST_S
            self._free_at[peer] = min(max(self._free_at.pop(peer, now), now) + PAUSE_S, latest)
            if len(self._free_at) > PEERS_MAX:
                self._free_at.popitem(last=False)

    def wait_s(self, peer: str) -> float:
        """How long the peer's next connection has to wait."""
        with self._lock:
            now = self._clock()
            left = self._free_at.get(peer, now) - now - BAD_AT_ONCE * PAUSE_S
        return min(max(left, 0.0), LONGEST_S)

    def admit(self, sock: socket.socket, peer: str) -> bool:
        """Wait as long as the peer has to; False when it, or the server, has gone meanwhile (M2)."""
        wait_s = self.wait_s(peer)
        if not wait_s:
            return True
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return not poll.poll(wait_s * 1000)


def peer_of(sock: socket.socket) -> str:
    """Who is at the other end, as far as the kernel says."""
    try:
        if sock.family == socket.AF_UNIX:
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return f"process {_CREDENTIALS.unpack(raw)[0]}"
        return f"address {sock.getpeername()[0]}"
    except OSError:
        return "gone"
