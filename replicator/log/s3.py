"""Objects in a bucket: the object log on S3, and on what speaks like it, by obstore.

An object `a/b` is the key PREFIX/a/b. A segment waits in a spool until it is whole, then it is put by one request with
If-None-Match: of two writers exactly one gets a name (T1), and nobody ever sees a part (T2). Folders are no things of
their own, what stands is durable (T4), and an unfinished put leaves nothing (T5).

Failure table of `commit`, and of `put_if_absent`:

    answer of the store                what stands                     what is told
    done                               the object                      True
    there already (412, 409)           somebody's object               False; PutUnknownError after an unknown try
    409, but nothing is there          nothing: two met                tried again
    no connection, denied, no bucket   nothing of ours                 UnavailableError after the tries; the error
    time-out, broken off, 5xx          perhaps the object              tried again; PutUnknownError at the end
    dies in the middle                 perhaps the object, even later  the next publisher settles by the tail

A put whose answer was lost may come to stand later, after the tail was read: then the next put of that name finds it
taken, and the tail is read again. So a name never changes its content.

The probe: before the first conditional put of a process, `temporary/probe` is put with If-None-Match, twice where it
wasn't there. A store that takes the second one ignores the condition, and is refused. The probe stays there for
good: an agent's key needs no right to delete.

Invariants
  S1  Nothing is put under a condition before the probe was refused once by this store.
  S2  Every request ends: by a time limit, and by a number of tries; a listing also, whose pages would go on for ever.
  S3  Memory: what spools hold (`spool`), and one object while it is read.

Failures: UnavailableError (AccessDeniedError and ForeignKeyError with it), BucketMissingError (a NotFoundError; once
the bucket was there an UnavailableError), UnsuitableStoreError, NoSpaceError, PutUnknownError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
import stamina
import stamina.instrumentation
from obstore.exceptions import AlreadyExistsError, BaseError

from replicator._buffer import Buffer
from replicator.errors import FormatError, ReplicatorError, UnavailableError
from replicator.log.errors import PutUnknownError
from replicator.log.s3_errors import Failure, is_past_end, is_untold, judged, no_conditional_put
from replicator.log.spool import Allowance, Spool
from replicator.units import MIB

if TYPE_CHECKING:
    from obstore import ListResult, ObjectMeta
    from obstore.store import ObjectStore as Bucket

PROBE = "temporary/probe"
_PROBE_BYTES = b"replicator: whether this store refuses to replace an object"
_BULK_BYTES = 4 * MIB  # above it a request gets the long time limit
Value = TypeVar("Value")

stamina.instrumentation.set_on_retry_hooks([])  # a log's troubles are told by status, not by a library's log lines


@dataclass(frozen=True, slots=True)
class Patience:
    """How a request is tried again: by backoff with jitter, at most so often and so long."""

    tries: int = 5
    in_all_s: float = 30.0
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    listing_s: float = 600.0  # of all its pages: three million names, at 5,000 a second

    def attempts(self) -> Iterator[Any]:
        """The tries, as contexts; what can't pass by itself isn't tried again."""
        return iter(
            stamina.retry_context(
                on=lambda error: type(error) is UnavailableError,
                attempts=self.tries,
                timeout=timedelta(seconds=self.in_all_s),
                wait_initial=self.first_wait_s,
                wait_max=self.longest_wait_s,
                wait_jitter=self.first_wait_s,
            )
        )


class BucketStore:
    """An ObjectStore whose objects are keys of a bucket; for any thread.

    `small` and `bulk` are the same bucket and prefix under a short and a long time limit; neither retries.
    """

    poll_s = 1.0  # every look is a request that is paid for

    def __init__(self, name: str, small: Bucket, bulk: Bucket, patience: Patience | None = None) -> None:
        self._name = name
        self._small, self._bulk = small, bulk
        self._patience = patience or Patience()
        self._allowance = Allowance()
        self._is_proven = False
        self._was_there = False  # the bucket, when something was asked

    @property
    def name(self) -> str:
        """How messages name it."""
        return self._name

    def create(self, name: str) -> BucketSink:
        """A sink for the object `name`."""
        self._prove()
        return BucketSink(self, name, Spool(self._allowance))

    def put(self, name: str, data: Buffer) -> None:
        """Write or replace `name`."""
        self._tried(f"put {name}", lambda: obstore.put(self._small, name, bytes(data), use_multipart=False))

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """`data` as `name`, if the name is free."""
        self._prove()
        return self.create_whole(name, [bytes(data)])

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """The whole object, bounded."""

        def read() -> bytes:
            answer = obstore.get(self._bulk if limit_bytes > _BULK_BYTES else self._small, name)
            size = int(answer.meta["size"])
            if size > limit_bytes:
                raise FormatError(f"{self._name}/{name}", f"at most {limit_bytes} bytes", f"{size} bytes")
            return answer.bytes().to_bytes()

        return self._found(f"get {name}", read)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes | None:
        """A part of the object, shorter at its end."""
        if length_bytes <= 0:
            return None if self.size(name) is None else b""

        def read() -> bytes:
            client = self._bulk if length_bytes > _BULK_BYTES else self._small
            try:
                return obstore.get_range(client, name, start=offset_bytes, length=length_bytes).to_bytes()
            except BaseError as error:
                if is_past_end(str(error)):
                    return b""
                raise

        return self._found(f"get {name}", read)

    def size(self, name: str) -> int | None:
        """The object's length, or None."""
        return self._found(f"head {name}", lambda: self._head(name))

    def _head(self, name: str) -> int:
        """The answer to a HEAD has no body: where it is refused, a GET of one byte is told why."""
        try:
            return int(obstore.head(self._small, name)["size"])
        except BaseError as error:
            if not is_untold(str(error)):
                raise
        return int(obstore.get(self._small, name, options={"range": (0, 1)}).meta["size"])

    def children(self, prefix: str) -> list[str]:
        """The names right below `prefix`; a key that ends there (a console's "folder") is none of them."""
        listed = self._tried(f"list {prefix}", lambda: self._listed(prefix))
        above = f"{prefix}/" if prefix else ""
        keys = [*listed["common_prefixes"], *(each["path"] for each in listed["objects"])]
        return [name for key in keys if key.startswith(above) and (name := key[len(above) :])]

    def _listed(self, prefix: str) -> ListResult[Sequence[ObjectMeta]]:
        """Both kinds of names, of all pages together in a limited time (S2)."""
        limit_s = self._patience.listing_s

        async def in_time() -> ListResult[Sequence[ObjectMeta]]:
            return await asyncio.wait_for(obstore.list_with_delimiter_async(self._small, prefix or None), limit_s)

        try:
            return asyncio.run(in_time())
        except TimeoutError:
            mend = "trim the log; or does the server give the same pages again?"
            raise UnavailableError(f"{self._name}: list {prefix}: no end of it in {limit_s:.0f} s", mend=mend) from None

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""
        self._found(f"delete {name}", lambda: obstore.delete(self._small, name))

    def drop_folder(self, prefix: str) -> None:
        """Folders are no things of their own here."""

    def settle(self, name: str) -> None:
        """What stands is durable."""

    def sweep(self, prefix: str) -> None:
        """An unfinished put leaves nothing."""

    def create_whole(self, name: str, parts: list[Buffer]) -> bool:
        """Put `parts`, joined, as `name` if the name is free (the failure table above)."""
        client = self._bulk if sum(map(len, parts)) > _BULK_BYTES else self._small
        doubts: list[str] = []
        try:
            for attempt in self._patience.attempts():
                with attempt:
                    return self._create_once(client, name, parts, doubts)
        except ReplicatorError as error:
            if doubts and not isinstance(error, PutUnknownError):
                raise PutUnknownError(f"{error.message}; an earlier try: {doubts[0]}") from error
            raise
        raise AssertionError("the last try returns or raises")

    def _create_once(self, client: Bucket, name: str, parts: list[Buffer], doubts: list[str]) -> bool:
        try:
            obstore.put(client, name, iter(parts), mode="create", use_multipart=False)
        except AlreadyExistsError:
            if doubts:
                raise PutUnknownError(f"{self._name}/{name} stands, perhaps by us: {doubts[0]}") from None
            if self.size(name) is None:
                raise UnavailableError(f"{self._name}/{name}: two puts met, and none stands yet") from None
            return False
        except (BaseError, OSError) as error:
            failure = self._judged(error, f"put {name}")
            if failure.may_stand:
                doubts.append(failure.error.message)
            raise failure.error from None
        return True

    def _prove(self) -> None:
        """S1."""
        if self._is_proven:
            return
        if self.create_whole(PROBE, [_PROBE_BYTES]) and self.create_whole(PROBE, [_PROBE_BYTES]):
            raise no_conditional_put(self._name)
        self._is_proven = True

    def _judged(self, error: Exception, what: str) -> Failure:
        return judged(str(error), what, self._name, was_there=self._was_there)

    def _tried(self, what: str, do: Callable[[], Value]) -> Value:
        """The outcome of an idempotent request, tried again while that may help (S2)."""
        for attempt in self._patience.attempts():
            with attempt:
                try:
                    value = do()
                    self._was_there = True
                    return value
                except FileNotFoundError as error:
                    raise _absent(self._judged(error, what)) from None
                except (BaseError, OSError) as error:
                    raise self._judged(error, what).error from None
        raise AssertionError("the last try returns or raises")

    def _found(self, what: str, do: Callable[[], Value]) -> Value | None:
        """The same; None where the object isn't there."""
        try:
            return self._tried(what, do)
        except _AbsentError:
            return None


class _AbsentError(ReplicatorError):
    """The object isn't there."""


def _absent(failure: Failure) -> ReplicatorError:
    """What "not found" means: the object, or all of the bucket."""
    return _AbsentError(failure.error.message) if failure.may_stand else failure.error


class BucketSink:
    """An object on its way to its name."""

    def __init__(self, store: BucketStore, name: str, spool: Spool) -> None:
        self._store, self._name = store, name
        self._spool = spool
        self._is_spent = False

    def write(self, parts: list[Buffer]) -> None:
        """Add `parts`."""
        assert not self._is_spent, "the sink is spent"
        self._spool.write(parts)

    def commit(self) -> bool:
        """Put it under its name."""
        assert not self._is_spent, "the sink is spent"
        try:
            return self._store.create_whole(self._name, self._spool.whole())
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop it."""
        self._is_spent = True
        self._spool.close()
