"""The exporter: the one process that has a pool open for writing, serves its volumes, and answers its control socket.

Run by `replicator serve`, by hand, under systemd, or started by an agent or a receiver (exporter/supervise). It does
nothing that would cost the threads that serve disks their processor: no diff of live volumes, no hash, no compression.

    start   the pool (locks, replay) → its fronts (NBD listeners) → the control socket → READY
    stop    control socket → fronts (what is in flight is answered) → the engine (what is dirty is committed) → locks

Invariants
  E1  Clients of the control socket are heard only when the disks are served already.
  E2  A second request for a listener that is there is answered with it, so that adopting an exporter asks for it again;
      one that asks for other names, other rights or other TLS files is refused, and the listener stays as it is.
  E3  A volume that is deleted or rolled back is in no client's hands: where one has it open, the switch is refused.
  E4  Whatever a listener meets when the catalogue changed is told, and tried again; the others go on.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicator.errors import ConflictError, ReplicatorError
from replicator.exporter.address import parse_address
from replicator.exporter.control import ControlServer, Identity
from replicator.exporter.fronts import Front
from replicator.exporter.origins import Origins
from replicator.exporter.signals import stopped_by_signals
from replicator.pool.clients import in_use
from replicator.pool.control_values import ExportFacts, ListenAsked
from replicator.pool.local import LocalPool
from replicator.pool.opening import own_pool
from replicator.pool.view import CatalogueView

RETRY_S = 5.0  # until what could not be offered is tried again
SWITCH_INTERVAL_S = 0.0001  # of the interpreter: so soon a thread of tree work lets one that serves a disk go on
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExporterSettings:
    """What an exporter is started with; `started_by` decides whether its agent or receiver ends it, too."""

    listeners: tuple[ListenAsked, ...] = ()
    started_by: str = "own"
    group: str | None = None


class Exporter:
    """The running exporter of one pool; a context manager."""

    def __init__(self, pool: LocalPool, settings: ExporterSettings) -> None:
        self._pool = pool
        self._origins = Origins()
        self._fronts: list[Front] = []
        self._away: Counter[int] = Counter()  # devices that somebody takes away just now, and how many do (E3)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._closing = ExitStack()
        self._closing.callback(pool.close)
        try:
            self._closing.callback(self._origins.close)
            self._closing.callback(self._close_fronts)
            for asked in settings.listeners:
                self.listen(asked)
            self._keeper = threading.Thread(target=self._keep_step, name="fronts", daemon=True)
            self._keeper.start()
            self._closing.callback(self._end_keeper)
            pool.on_view = self._note_change
            identity = Identity(settings.started_by)
            server = ControlServer(pool, pool.path, self, identity, group=settings.group, pid=os.getpid())
            self._closing.enter_context(server)
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # -- asked over the control socket -------------------------------------------------------------------------

    def listen(self, asked: ListenAsked) -> list[ExportFacts]:
        """One more listener, or the one that is there (E2)."""
        wanted = str(parse_address(asked.address))
        with self._lock:
            for front in self._fronts:
                if str(parse_address(front.asked.address)) == wanted:
                    _require_same(front.asked, asked)
                    return front.facts()
            front = Front(self._pool, asked, self._origins, self._away)
            try:
                front.listen()
            except BaseException:
                front.close()
                raise
            _tell(front.failures)
            self._fronts.append(front)
            self._changed.set()  # the keeper tries again what could not be offered
            return front.facts()

    def exports(self) -> list[ExportFacts]:
        """All that is served."""
        with self._lock:
            return [facts for front in self._fronts for facts in front.facts()]

    def listeners(self) -> list[ListenAsked]:
        """What each listener was asked for with."""
        with self._lock:
            return [front.asked for front in self._fronts]

    @contextmanager
    def let_go(self, dev_ids: Collection[int]) -> Iterator[None]:
        """Offer no volume that is one of these devices while the block lasts, and then what is there (E3)."""
        names = {each.dev_id: each.name for each in self._pool.view().volumes if each.dev_id in dev_ids}
        with self._lock:
            self._away.update(names.keys())
            fronts = [front for front in self._fronts if front.offers(dev_ids)]
        try:
            for front in fronts:
                self._sync(front)  # a snapshot that was deleted is offered no more
                for dev_id, name in names.items():
                    if clients := front.let_go(dev_id):
                        raise in_use(name, clients)
            yield
        finally:
            with self._lock:
                self._away.subtract(names.keys())
                fronts = list(self._fronts)  # with those that were asked for meanwhile
            for front in fronts:
                self._sync(front)
            self._changed.set()  # the keeper tries again what could not be offered

    def stop(self) -> None:
        """End soon."""
        self._stopping.set()

    def wait(self) -> None:
        """Until somebody asks for the end."""
        self._stopping.wait()

    # -- in step with the catalogue ----------------------------------------------------------------------------

    def _note_change(self, _: CatalogueView) -> None:
        self._changed.set()

    def _keep_step(self) -> None:
        told: list[str] = []
        while not self._stopping.is_set():
            self._changed.wait(RETRY_S if told else None)
            self._changed.clear()
            if self._stopping.is_set():
                return
            with self._lock:
                fronts = list(self._fronts)
            failures = [failure for front in fronts for failure in self._sync(front)]
            before, told = told, [str(failure) for failure in failures]
            if told != before:
                _tell(failures)

    def _sync(self, front: Front) -> list[Exception]:
        try:
            return front.sync()
        except Exception as error:  # noqa: BLE001 - one listener's fault keeps neither the others nor the keeper (E4)
            return [error]

    def _end_keeper(self) -> None:
        self._stopping.set()
        self._changed.set()
        self._keeper.join()

    def _close_fronts(self) -> None:
        with self._lock:
            fronts, self._fronts = self._fronts, []
        for front in fronts:
            front.close()


def serve(path: Path, settings: ExporterSettings, ready: Callable[[Sequence[ExportFacts]], None]) -> None:
    """Own the pool at `path` and serve it until SIGTERM, SIGINT or a client's stop; `ready` hears what is served."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    asked = threading.Event()
    with stopped_by_signals(asked.set), Exporter(own_pool(path), settings) as exporter:
        threading.Thread(target=_end_with, args=(asked, exporter), name="signals", daemon=True).start()
        ready(exporter.exports())
        exporter.wait()


def _require_same(there: ListenAsked, asked: ListenAsked) -> None:
    """ConflictError if a listener that is there isn't what was asked for (E2)."""
    differing = [
        name
        for name, old, new in (
            ("volumes", sorted(there.names), sorted(asked.names)),
            ("read-only", there.read_only, asked.read_only),
            ("TLS", there.tls, asked.tls),
        )
        if old != new
    ]
    if differing:
        raise ConflictError(
            f"{there.address} is served already with other settings: {', '.join(differing)}",
            mend="ask for another address, or end the exporter that serves it and start again",
        )


def _tell(failures: Sequence[Exception]) -> None:
    for failure in failures:
        ours = not isinstance(failure, ReplicatorError | OSError)  # then where it happened tells more
        _log.warning("an export can't be offered now: %s", failure, exc_info=failure if ours else None)


def _end_with(asked: threading.Event, exporter: Exporter) -> None:
    asked.wait()
    exporter.stop()
