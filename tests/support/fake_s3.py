"""A small S3 server of ours, in this process: for what a good one doesn't do.

It knows what obstore asks for: PUT (with If-None-Match), GET with a range, HEAD, DELETE, ListObjectsV2 with a
delimiter. It checks no signature. A plan says what becomes of the n-th request:

    DROP_BEFORE   the connection is closed, nothing is done       DROP_AFTER    done, then the connection is closed
    BUSY          503 SlowDown, nothing is done                   BUSY_AFTER    done, and yet 503
    MET           409 ConditionalRequestConflict, nothing is done DENIED        403 AccessDenied
    EXPIRED       400 ExpiredToken                                STALLED       400 RequestTimeout, nothing is done
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class S3Fault(Enum):
    """What becomes of a request."""

    DROP_BEFORE = "dropped, nothing done"
    DROP_AFTER = "dropped, though it was done"
    BUSY = "503, nothing done"
    BUSY_AFTER = "503, though it was done"
    MET = "409, nothing done"
    DENIED = "403"
    EXPIRED = "400, the token"
    STALLED = "400, the body didn't come"


_REFUSALS = {
    S3Fault.BUSY: (503, "SlowDown"),
    S3Fault.BUSY_AFTER: (503, "SlowDown"),
    S3Fault.MET: (409, "ConditionalRequestConflict"),
    S3Fault.DENIED: (403, "AccessDenied"),
    S3Fault.EXPIRED: (400, "ExpiredToken"),
    S3Fault.STALLED: (400, "RequestTimeout"),
}

Plan = Callable[[int, str, str], S3Fault | None]
"""(number of the request from 1, method, key) to what becomes of it."""


class FakeS3:
    """The server's state."""

    def __init__(self, *, ignores_conditions: bool = False, plan: Plan = lambda number, method, key: None) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.signers: list[tuple[str, str]] = []  # of each request: the key that signed it, and its token
        self.has_bucket = True
        self.has_last_page = True  # of a listing
        self.ignores_conditions = ignores_conditions
        self.plan = plan
        self.port = 0
        self.lock = threading.Lock()

    def url(self, prefix: str, bucket: str = BUCKET) -> str:
        """A log's URL on it; keys come from the environment."""
        return f"s3://{bucket}/{prefix}?endpoint=http://127.0.0.1:{self.port}&region=us-east-1&timeout=5s"

    def planned(self, method: str, key: str) -> S3Fault | None:
        """Count a request, and what becomes of it."""
        with self.lock:
            self.requests.append((method, key))
            return self.plan(len(self.requests), method, key)

    def put(self, key: str, data: bytes, *, only_new: bool) -> bool:
        """Whether it was taken."""
        with self.lock:
            if only_new and key in self.objects and not self.ignores_conditions:
                return False
            self.objects[key] = data
            return True


@contextlib.contextmanager
def fake_s3(*, ignores_conditions: bool = False, plan: Plan = lambda number, method, key: None) -> Iterator[FakeS3]:
    """A server for as long as the block lasts."""
    fake = FakeS3(ignores_conditions=ignores_conditions, plan=plan)

    class Handler(_Handler):
        state = fake

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    state: FakeS3

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Nothing is printed."""

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self._key()
        only_new = self.headers.get("If-None-Match") == "*"
        self._answer(lambda: self._put(key, data, only_new=only_new))

    def do_GET(self) -> None:
        self._answer(self._list if "list-type" in self.path else self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

    def _answer(self, do: Callable[[], tuple[int, str, bytes, dict[str, str]]]) -> None:
        fault = self.state.planned(self.command, self._key())
        signer = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
        self.state.signers.append((signer, self.headers.get("x-amz-security-token", "")))
        if fault in (None, S3Fault.DROP_AFTER, S3Fault.BUSY_AFTER):
            status, code, body, headers = do()
        if fault in (S3Fault.DROP_BEFORE, S3Fault.DROP_AFTER):
            self.close_connection = True
            self.connection.close()
            return
        if fault in _REFUSALS:
            status, code, body, headers = *_REFUSALS[fault], b"", {}
        elif not self.state.has_bucket:
            status, code, body, headers = 404, "NoSuchBucket", b"", {}
        if code:
            body = f"<Error><Code>{code}</Code><Message>as planned</Message></Error>".encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "keep-alive", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _put(self, key: str, data: bytes, *, only_new: bool) -> tuple[int, str, bytes, dict[str, str]]:
        if not urlsplit(self.path).path.startswith(f"/{BUCKET}/"):
            return 404, "NoSuchBucket", b"", {}
        taken = self.state.put(key, data, only_new=only_new)
        return (200, "", b"", {"ETag": '"x"'}) if taken else (412, "PreconditionFailed", b"", {})

    def _get(self) -> tuple[int, str, bytes, dict[str, str]]:
        with self.state.lock:
            data = self.state.objects.get(self._key())
        if data is None:
            return 404, "NoSuchKey", b"", {}
        facts = {"ETag": '"x"', "Last-Modified": "Sun, 22 Nov 2026 15:18:04 GMT"}
        begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not begin:
            return 200, "", data, {**facts, "Content-Length": str(len(data))}
        if int(begin) >= len(data):
            return 416, "InvalidRange", b"", {}
        last = min(int(end), len(data) - 1)
        part = data[int(begin) : last + 1]
        return 206, "", part, {**facts, "Content-Range": f"bytes {begin}-{last}/{len(data)}"}

    def _delete(self) -> tuple[int, str, bytes, dict[str, str]]:
        with self.state.lock:
            self.state.objects.pop(self._key(), None)
        return 204, "", b"", {}

    def _list(self) -> tuple[int, str, bytes, dict[str, str]]:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        with self.state.lock:
            keys = sorted(key for key in self.state.objects if key.startswith(prefix))
        folders = sorted({prefix + rest.partition("/")[0] + "/" for key in keys if "/" in (rest := key[len(prefix) :])})
        here = [key for key in keys if "/" not in key[len(prefix) :]]
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-11-22T15:18:04Z</LastModified>"
            f"<Size>{len(self.state.objects[key])}</Size><ETag>x</ETag></Contents>"
            for key in here
        )
        rows += "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>"
        end = "<IsTruncated>false</IsTruncated>" if self.state.has_last_page else more
        return 200, "", f"<ListBucketResult>{end}{rows}</ListBucketResult>".encode(), {}
