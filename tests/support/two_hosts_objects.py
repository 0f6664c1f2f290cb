"""The object log's store in the simulation of two hosts: one shared set of objects, and each process's sight of it.

What can befall it:

    flip, tear    an object's bytes are others until somebody puts the right ones back (`mend`)
    miss          an object in the middle is not there, until it is put back
    lose          the last objects of a stream are gone for good, though their writer was told that they stand
    put back      all objects are those of a copy
    hide          one client doesn't see the newest objects yet, or not in their order
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.log.errors import PutUnknownError
from tests.support.memory_objects import MemoryStore
from tests.support.two_hosts_line import Line

Value = TypeVar("Value")


def is_segment(name: str) -> bool:
    """Whether the object holds events."""
    return name.count("/") == 3


class SharedObjects(MemoryStore):
    """The objects that stand; `on_segment` hears of each new segment, in order."""

    def __init__(self, on_segment: Callable[[str, bytes], None]) -> None:
        super().__init__()
        self._on_segment = on_segment
        self._good: dict[str, bytes] = {}

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        is_new = name not in self.objects and name not in self._good and super().put_if_absent(name, data)
        if is_new and is_segment(name):
            self._on_segment(name, self.objects[name])
        return is_new

    def segments(self, stream: str) -> list[str]:
        """The names of a stream's segments, in order; `stream` is VOLUME/TIMELINE."""
        names = {*self.objects, *self._good}
        return sorted(name for name in names if is_segment(name) and name.startswith(f"{stream}/"))

    def damage(self, name: str, data: bytes | None) -> None:
        """The object's bytes become `data`; None: it is missing."""
        self._good.setdefault(name, self.objects[name])
        if data is None:
            self.objects.pop(name)
        else:
            self.objects[name] = data

    def mend(self) -> None:
        """All that was damaged is put back."""
        self.objects.update(self._good)
        self._good = {}

    def copied(self) -> Callable[[], None]:
        """All objects as they stand, for who calls what is returned."""
        objects, good = dict(self.objects), dict(self._good)

        def put_back() -> None:
            self.objects, self._good = dict(objects), dict(good)

        return put_back

    @property
    def damaged(self) -> set[str]:
        """What isn't as it was written."""
        return set(self._good)

    def lose(self, name: str) -> bytes:
        """The object never was; what it held."""
        good = self._good.pop(name, None)
        held = self.objects.pop(name, None)
        found = good or held
        assert found is not None
        return found


class ClientStore:
    """An ObjectStore: the shared objects through one process's line."""

    poll_s = 0.05

    def __init__(self, shared: SharedObjects, line: Line) -> None:
        self._shared, self._line = shared, line
        self.hidden: set[str] = set()

    @property
    def name(self) -> str:
        """How messages name it."""
        return "objects:"

    def create(self, name: str) -> ClientSink:
        """A sink; nothing is sent before its commit."""
        return ClientSink(self, name)

    def put(self, name: str, data: Buffer) -> None:
        """Write or replace."""
        self._line.call(lambda: self._shared.put(name, data))

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Write if free."""
        return self._line.call(lambda: self._shared.put_if_absent(name, data), PutUnknownError)

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """Whole."""
        data = self._line.call(lambda: self._seen(name))
        if data is not None and len(data) > limit_bytes:
            raise FormatError(name, f"at most {limit_bytes} bytes", f"{len(data)} bytes")
        return data

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes | None:
        """A part."""
        data = self._line.call(lambda: self._seen(name))
        return None if data is None else data[offset_bytes : offset_bytes + length_bytes]

    def size(self, name: str) -> int | None:
        """Length."""
        data = self._line.call(lambda: self._seen(name))
        return None if data is None else len(data)

    def children(self, prefix: str) -> list[str]:
        """Names right below."""
        hidden = {name.rpartition("/")[2] for name in self.hidden if name.rpartition("/")[0] == prefix}
        return [name for name in self._line.call(lambda: self._shared.children(prefix)) if name not in hidden]

    def delete(self, name: str) -> None:
        """Remove."""
        self._line.call(lambda: self._shared.delete(name))

    def drop_folder(self, prefix: str) -> None:
        """Folders aren't things here."""

    def settle(self, name: str) -> None:
        """What stands here is durable."""
        self._line.call(lambda: None)

    def sweep(self, prefix: str) -> None:
        """Sinks leave nothing behind."""
        self._line.call(lambda: None)

    def _seen(self, name: str) -> bytes | None:
        return None if name in self.hidden else self._shared.objects.get(name)


class ClientSink:
    """An ObjectSink: gathered here, sent at the commit."""

    def __init__(self, store: ClientStore, name: str) -> None:
        self._store, self._name = store, name
        self._parts: list[bytes] = []

    def write(self, parts: list[Buffer]) -> None:
        """Add."""
        self._parts += [bytes(part) for part in parts]

    def commit(self) -> bool:
        """Name it."""
        return self._store.put_if_absent(self._name, b"".join(self._parts))

    def abort(self) -> None:
        """Drop it."""
        self._parts = []
