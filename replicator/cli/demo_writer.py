"""The client of `replicator demo`: writes over NBD, remembers every answer, and can tell later what a point must hold.

Writes go in rounds of a few pages, all in flight together; when all of a round were answered, one more write puts the
round's number into the counter page. So a restored image says itself how far it is, and must be exactly: all rounds up
to its counter, and of the next one any pages, each whole or not at all (a cut is one instant).

    page 0 of the region   the counter: round number, u64, little-endian
    the others             `content(page, round)`: text, numbers and noise, so that it compresses as data does

Nothing that was answered is ever written again. When the server goes, what was in flight is sent again to the next one.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from replicator.blockdev.nbd_connection import connect
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.errors import ReplicatorError
from replicator.nbd.uri import NbdUri
from replicator.units import PAGE_BYTES

Image = npt.NDArray[np.uint8]
PAGES_PER_ROUND = 12
_DEPTH = 16
_RECONNECT_S = 0.05
_GIVE_UP_S = 60.0
_TIMEOUT_S = 30.0


def content(page: int, round_: int) -> bytes:
    """What round `round_` writes into `page`."""
    noise = random.Random(page << 32 | round_).randbytes(1024)
    text = f"page {page:8} round {round_:8} | ".encode() * 128
    return (noise + text)[:PAGE_BYTES]


def counter(round_: int) -> bytes:
    """The counter page after `round_`."""
    return round_.to_bytes(8, "little") + bytes(PAGE_BYTES - 8)


@dataclass(slots=True)
class Figures:
    """What the writer saw: answers, reconnections, the longest waits."""

    answered: int = 0
    rounds: int = 0
    reconnected: int = 0
    in_flight_at_loss: list[int] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Proof:
    """An image held against what the writer knew."""

    ok: bool
    round_: int
    sha256: str
    partial_pages: int
    why: str = ""


class Writer:
    """Writes into the pages `region` of the volume at `uri` until `stop`; `initial` is the volume before."""

    def __init__(self, uri: str, region: Sequence[int], initial: Path, seed: int = 1) -> None:
        self.uri = NbdUri.parse(uri)
        self.region = list(region)
        self.initial = initial
        self.figures = Figures()
        self.failed: BaseException | None = None
        self.history: list[list[int]] = [[]]
        self._known: tuple[int, Image] | None = None
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._pipeline: NbdPipeline | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Connect, and begin."""
        self._pipeline = self._connect()
        self._thread.start()

    def stop(self) -> None:
        """Finish the round in work; raises what made the writer fail."""
        self._stopping.set()
        self._thread.join()
        if self._pipeline is not None:
            self._pipeline.close()
        if self.failed is not None:
            raise self.failed

    @property
    def in_flight(self) -> int:
        """Requests that were sent and aren't answered yet."""
        pipeline = self._pipeline
        return 0 if pipeline is None else pipeline.in_flight

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that calls stop
            self.failed = error

    def _connect(self) -> NbdPipeline:
        give_up = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                return NbdPipeline(connect(self.uri, timeout_s=_TIMEOUT_S), depth=_DEPTH, timeout_s=_TIMEOUT_S)
            except (ReplicatorError, OSError):
                if time.monotonic() > give_up:
                    raise
                time.sleep(_RECONNECT_S)

    def _round(self) -> None:
        number = len(self.history)
        pages = sorted(self._random.sample(self.region[1:], PAGES_PER_ROUND))
        self.history.append(pages)
        self._write({page: content(page, number) for page in pages})
        self._write({self.region[0]: counter(number)})
        self.figures.rounds = number

    def _write(self, pages: dict[int, bytes]) -> None:
        """Write all of them, and return when each was answered (once)."""
        left = dict(pages)
        began = time.perf_counter()
        while left:
            try:
                self._attempt(left)
            except (ReplicatorError, OSError):
                assert self._pipeline is not None
                self.figures.in_flight_at_loss.append(len(left))
                self._pipeline.close()
                self._pipeline = self._connect()
                self.figures.reconnected += 1
        self.figures.waits_s.append(time.perf_counter() - began)

    def _attempt(self, left: dict[int, bytes]) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        cookies = {pipeline.write(page * PAGE_BYTES, data): page for page, data in left.items()}
        while cookies:
            for reply in pipeline.collect():
                if reply.error:
                    raise ReplicatorError(f"a write was refused: {reply.error} {reply.message}")
                del left[cookies.pop(reply.request.cookie)]
                self.figures.answered += 1

    # -- afterwards --------------------------------------------------------------------------------------------

    def prove(self, image: Path) -> Proof:
        """Whether `image` is the volume at one instant of this writer's life; quickest in the order of the instants."""
        found = np.fromfile(image, dtype=np.uint8)
        digest = hashlib.sha256(found.data).hexdigest()
        if len(found) != self.initial.stat().st_size:
            return Proof(False, 0, digest, 0, f"it has {len(found)} bytes, not {self.initial.stat().st_size}")
        start = self.region[0] * PAGE_BYTES
        round_ = int.from_bytes(found[start : start + 8].tobytes(), "little")
        first = len(self.history)
        if round_ >= first:
            return Proof(False, round_, digest, 0, f"its counter says {round_}, only {first - 1} were begun")
        expected = self._after(round_).copy()
        partial = 0
        for page in self.history[round_ + 1] if round_ + 1 < len(self.history) else []:
            if _page(found, page) == content(page, round_ + 1):
                _put(expected, page, content(page, round_ + 1))
                partial += 1
        ok = hashlib.sha256(expected.data).hexdigest() == digest
        return Proof(ok, round_, digest, partial, "" if ok else _first_difference(found, expected))

    def _after(self, round_: int) -> Image:
        """The volume after `round_`, carried on from the last one asked for where that was earlier."""
        if self._known is None or self._known[0] > round_:
            self._known = (0, np.fromfile(self.initial, dtype=np.uint8))
        done, image = self._known
        for number in range(done + 1, round_ + 1):
            for page in self.history[number]:
                _put(image, page, content(page, number))
        if round_:
            _put(image, self.region[0], counter(round_))
        self._known = (round_, image)
        return image


def _put(image: Image, page: int, data: bytes) -> None:
    image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = np.frombuffer(data, dtype=np.uint8)


def _page(image: Image, page: int) -> bytes:
    return image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].tobytes()


def _first_difference(found: Image, expected: Image) -> str:
    pages = np.flatnonzero((found != expected).reshape(-1, PAGE_BYTES).any(axis=1))
    return f"{len(pages)} pages differ from what the writer knew, the first is page {int(pages[0])}"
