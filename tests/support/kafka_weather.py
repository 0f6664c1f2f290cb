"""A publisher and a follower of one stream on a real broker, as patient as the agent's and the receiver's are."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from replicator.errors import ReplicatorError, UnavailableError
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.interface import Appended, Log, StreamWriter
from tests.support.event_streams import VOLUME, Script

PATIENCE_S = 90.0
_PAUSE_S = 0.25


@dataclass
class Publishing:
    """A publisher as the agent is one: appends, and after anything but Appended settles and goes on from the tail."""

    log: Log
    script: Script = field(default_factory=lambda: Script().create())
    sent: list[Event] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)

    def publish(self, count: int, before: threading.Event | None = None) -> None:
        """So many transactions, each until it stands."""
        with self.log.writer(VOLUME, 1) as writer:
            for i in range(count):
                self.script.transaction(i % 50, i % 50 + 50)
                self.sent += self.script.take()
                if before is not None and i == 1:
                    before.set()
                self._until_it_stands(writer)

    def _until_it_stands(self, writer: StreamWriter) -> None:
        stop = threading.Event()
        for _ in range(1000):
            try:
                state = writer.settle() if self.outcomes.pop("unsettled", 0) else writer.durable
                rest = self.sent[state.sequence :]
                if not rest:
                    return
                outcome = writer.append(state.link, rest)
            except ReplicatorError as error:
                self._count(type(error).__name__)
                stop.wait(_PAUSE_S)
                continue
            if isinstance(outcome, Appended):
                return
            self._count(type(outcome).__name__)
        raise AssertionError(f"it never stands: {self.outcomes}")

    def _count(self, name: str) -> None:
        self.outcomes[name] = self.outcomes.get(name, 0) + 1
        self.outcomes["unsettled"] = 1


class Patience:
    """A Waiter on the real clock that a test stops."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def monotonic(self) -> float:
        """The real clock."""
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait; whether a stop was asked for."""
        return self.stopped.wait(seconds)


class Following:
    """A follower that keeps what it applied; after an error it begins again behind it."""

    def __init__(self, log: Log, until: StreamState | None = None) -> None:
        self._log = log
        self.checker = ChainChecker(StreamState.start(VOLUME))
        self.applied: list[Event] = []
        self.verdicts: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.patience = Patience()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.patience.stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.patience.stopped.is_set():
            try:
                reader = self._log.reader(VOLUME, 1)
                for event in reader.follow(self.checker.state.sequence + 1, self.patience, 0.5):
                    verdict = self.checker.accept(event)
                    self.verdicts[verdict.value] = self.verdicts.get(verdict.value, 0) + 1
                    if verdict is Verdict.APPLY:
                        self.applied.append(event)
            except UnavailableError as error:
                self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1
                self.patience.wait(_PAUSE_S)

    def await_sequence(self, sequence: int) -> None:
        """Until it has applied that much."""
        waiting = threading.Event()
        for _ in range(int(PATIENCE_S / _PAUSE_S)):
            if self.checker.state.sequence >= sequence or not self._thread.is_alive():
                return
            waiting.wait(_PAUSE_S)
