"""Objects in memory: the second ObjectStore, so that the object log is shown to stand on the seam alone."""

from __future__ import annotations

from replicator._buffer import Buffer
from replicator.errors import FormatError


class MemoryStore:
    """An ObjectStore in a dict; `pending` are the sinks' strays."""

    poll_s = 0.05

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    @property
    def name(self) -> str:
        """How messages name it."""
        return "memory:"

    def create(self, name: str) -> MemorySink:
        """A sink."""
        return MemorySink(self, name)

    def put(self, name: str, data: Buffer) -> None:
        """Write or replace."""
        self.objects[name] = bytes(data)

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Write if free."""
        return self.objects.setdefault(name, held := bytes(data)) is held

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """Whole."""
        data = self.objects.get(name)
        if data is not None and len(data) > limit_bytes:
            raise FormatError(name, f"at most {limit_bytes} bytes", f"{len(data)} bytes")
        return data

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes | None:
        """A part."""
        data = self.objects.get(name)
        return None if data is None else data[offset_bytes : offset_bytes + length_bytes]

    def size(self, name: str) -> int | None:
        """Length."""
        data = self.objects.get(name)
        return None if data is None else len(data)

    def children(self, prefix: str) -> list[str]:
        """Names right below."""
        stem = f"{prefix}/" if prefix else ""
        return list({name[len(stem) :].partition("/")[0] for name in self.objects if name.startswith(stem)})

    def delete(self, name: str) -> None:
        """Remove."""
        self.objects.pop(name, None)

    def drop_folder(self, prefix: str) -> None:
        """Folders aren't things here."""

    def settle(self, name: str) -> None:
        """Nothing here outlives the process."""

    def sweep(self, prefix: str) -> None:
        """Nothing is left by dead writers."""


class MemorySink:
    """An ObjectSink in memory."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
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
