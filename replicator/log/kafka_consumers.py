"""Consumers to borrow: making one costs a connection, and a follower reads the same topic for ever.

Whoever borrows a topic's consumer has it alone; an idle one is used again, by whichever thread comes next. One that met
an error isn't. Topics that were seen once are known to be there.

Invariant
  B1  At most IDLE_MAX consumers lie idle; each holds a fetch of its topic at most (kafka.FETCH_BYTES).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from replicator.log.kafka import Client, Consumer

IDLE_MAX = 16  # two of the compacted topics, and the streams that status and commands look at: 64 MiB at most


class Consumers:
    """The consumers of one log; from any thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._turn = threading.Lock()
        self._idle: list[Consumer] = []
        self._known: set[str] = set()
        self._closed = False

    def has_topic(self, topic: str) -> bool:
        """Whether the topic is there."""
        if topic not in self._known and self._client.has_topic(topic):
            self._known.add(topic)
        return topic in self._known

    @contextmanager
    def borrow(self, topic: str) -> Iterator[Consumer]:
        """A consumer of a topic that is there; after an error it is closed, and the topic is looked for again."""
        consumer = self._take(topic) or self._client.consumer(topic)
        try:
            yield consumer
        except GeneratorExit:
            self._give_back(consumer)
            raise
        except BaseException:
            self._known.discard(topic)
            consumer.close()
            raise
        else:
            self._give_back(consumer)

    def close(self) -> None:
        """Close those that lie idle, and those that come back."""
        with self._turn:
            self._closed = True
            idle, self._idle = self._idle, []
        for consumer in idle:
            consumer.close()

    def _take(self, topic: str) -> Consumer | None:
        with self._turn:
            found = next((each for each in self._idle if each.topic == topic), None)
            if found is not None:
                self._idle.remove(found)
            return found

    def _give_back(self, consumer: Consumer) -> None:
        with self._turn:
            if not self._closed:
                self._idle.append(consumer)
            surplus = consumer if self._closed else self._idle.pop(0) if len(self._idle) > IDLE_MAX else None
        if surplus is not None:
            surplus.close()
