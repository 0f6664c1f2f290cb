"""Our NBD server as other people's clients see it: libnbd's programs and module, qemu's, and fio.

Each test serves a pool from a process of its own; when it has ended, both thin_checks find the metadata clean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.certificates import make_certificates
from tests.support.exporting import Child, Setup, exporting
from tests.support.judges import assert_clean, nbd_tool

SIZE = 32 << 20
BLOCK = 65536

pytestmark = pytest.mark.usefixtures("nbd_judges", "thin_judges")


@contextlib.contextmanager
def served(folder: Path, **more: Any) -> Iterator[Child]:
    """A pool served at `folder`/s, checked when it is closed."""
    with exporting(folder / "pool", Setup(listen=(f"unix:{folder / 's'}",), **more)) as child:
        yield child
    assert_clean(folder / "pool" / "metadata")


def uri(folder: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={folder / 's'}"


def image(path: Path, size: int = SIZE, seed: int = 1) -> bytes:
    """A file with data, holes and zeros."""
    rng = random.Random(seed)
    content = bytearray(size)
    for _ in range(40):
        begin = rng.randrange(size)
        piece = rng.randbytes(min(rng.choice((512, 4096, BLOCK, 300_000)), size - begin))
        content[begin : begin + len(piece)] = piece
    path.write_bytes(content)
    return bytes(content)


def test_nbdinfo_sees_what_there_is(tmp_path: Path) -> None:
    with served(tmp_path, volumes={"a": SIZE, "b": 8 << 20}, read_only=("b",)):
        listed = json.loads(nbd_tool("nbdinfo").run("--json", "--list", uri(tmp_path)).stdout)["exports"]
        assert {export["export-name"]: export["is_read_only"] for export in listed} == {"a": False, "b": True}
        told = json.loads(nbd_tool("nbdinfo").run("--json", uri(tmp_path, "a")).stdout)["exports"][0]
    for feature in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert told[f"can_{feature}"], feature
    assert told["export-size"] == SIZE
    assert (told["block_size_minimum"], told["block_size_preferred"], told["block_size_maximum"]) == (
        1,
        BLOCK,
        32 << 20,
    )
    assert told["contexts"] == ["base:allocation"]


def test_nbdcopy_both_ways_and_qemu_agrees(tmp_path: Path) -> None:
    content = image(tmp_path / "in")
    with served(tmp_path):
        nbd_tool("nbdcopy").run(tmp_path / "in", uri(tmp_path), timeout_s=60)
        nbd_tool("qemu-img").run("compare", "-f", "raw", "-F", "raw", tmp_path / "in", uri(tmp_path))
        nbd_tool("nbdcopy").run("--connections=4", uri(tmp_path), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_qemu_converts_and_compares(tmp_path: Path) -> None:
    content = image(tmp_path / "in", seed=2)
    with served(tmp_path):
        nbd_tool("qemu-img").run("convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "in", uri(tmp_path))
        nbd_tool("qemu-img").run("convert", "-O", "qcow2", uri(tmp_path), tmp_path / "out.qcow2")
        nbd_tool("qemu-img").run("compare", tmp_path / "out.qcow2", uri(tmp_path))
        mapped = json.loads(nbd_tool("qemu-img").run("map", "--output=json", "-f", "raw", uri(tmp_path)).stdout)
    nbd_tool("qemu-img").run("convert", "-O", "raw", tmp_path / "out.qcow2", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert {extent["data"] for extent in mapped} == {True, False}


def test_qemu_io_patterns(tmp_path: Path) -> None:
    steps = [
        "write -P 0x11 0 1M", "write -P 0x22 65537 70001", "write -P 0x33 511 2", "write -f -P 0x44 3M 64k",
        "flush", "write -z 128k 4k", "write -z -u 512k 256k", "discard 3M 64k", "write -P 0x55 33554431 1",
        "read -P 0x11 0 511", "read -P 0x33 511 2", "read -P 0x11 513 65024", "read -P 0x22 65537 65535",
        "read -P 0 128k 4k", "read -P 0 512k 256k", "read -P 0x11 768k 256k", "read -P 0 3M 64k",
        "read -P 0x55 33554431 1", "read -P 0 1M 2M",
    ]  # fmt: skip
    with served(tmp_path):
        orders = [word for step in steps for word in ("-c", step)]
        out = nbd_tool("qemu-io").run("-f", "raw", *orders, uri(tmp_path)).stdout
    assert "fail" not in out.lower()


@pytest.mark.parametrize(("block", "depth"), [("4k", 32), ("512-70k", 8), ("256k", 16)])
def test_fio_verifies(tmp_path: Path, block: str, depth: int) -> None:
    sizes = f"--bsrange={block}" if "-" in block else f"--bs={block}"
    with served(tmp_path, metadata_bytes=16 << 20) as child:
        child.order("cut", device=1, into=50, name="")
        nbd_tool("fio").run(
            "--name=v", "--ioengine=nbd", f"--uri={uri(tmp_path)}", "--rw=randwrite", sizes, f"--iodepth={depth}",
            f"--size={SIZE}", "--verify=xxhash", "--do_verify=1", "--verify_fatal=1", "--fsync=32", "--thread",
            "--bs_unaligned" if "-" in block else "--randrepeat=0", "--verify_state_save=0",
        )  # fmt: skip


def test_tls_is_required_where_it_is_set_up(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_certificates(keys)
    content = image(tmp_path / "in", 4 << 20)
    setup = {"tls": "required", "certificates": str(keys)}
    with served(tmp_path, **setup):
        inside = f"nbds+unix:///?socket={tmp_path / 's'}&tls-certificates={keys}"
        nbd_tool("nbdcopy").run(tmp_path / "in", inside)
        nbd_tool("nbdcopy").run(inside, tmp_path / "out")
        refused = nbd_tool("nbdinfo").run(uri(tmp_path), check=False)
        assert refused.returncode
        assert "TLS" in refused.stdout
    assert (tmp_path / "out").read_bytes()[: len(content)] == content


class Libnbd:
    """Handles of libnbd's module, one for each call."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self.module, self._folder = module, folder

    def open(self, export: str = "vol", *contexts: str, structured: bool = True) -> Any:
        handle = self.module.NBD()
        for context in contexts:
            handle.add_meta_context(context)
        handle.set_request_structured_replies(structured)
        handle.connect_uri(uri(self._folder, export))
        return handle


@pytest.fixture
def libnbd_at(libnbd: ModuleType, tmp_path: Path) -> Libnbd:
    return Libnbd(libnbd, tmp_path)


@pytest.mark.parametrize("structured", [True, False])
def test_random_requests_against_a_model(tmp_path: Path, libnbd_at: Libnbd, structured: bool) -> None:
    rng, model = random.Random(7), bytearray(SIZE - 12345)
    with served(tmp_path, volumes={"vol": len(model)}, data_bytes=128 << 20) as child:
        handle = libnbd_at.open(structured=structured)
        handle.set_strict_mode(0)
        frozen: dict[str, bytes] = {}
        for step in range(300):
            begin = rng.randrange(len(model))
            begin -= begin % rng.choice((1, 512, 4096, BLOCK))
            length = min(rng.choice((1, 512, 4096, BLOCK, 200_000, 1 << 20, 3 << 20)), len(model) - begin)
            dice = rng.random()
            if dice < 0.45:
                data = rng.randbytes(length)
                handle.pwrite(data, begin, flags=libnbd_at.module.CMD_FLAG_FUA if dice < 0.03 else 0)
                model[begin : begin + length] = data
            elif dice < 0.55:
                handle.zero(length, begin, flags=libnbd_at.module.CMD_FLAG_NO_HOLE if dice < 0.48 else 0)
                model[begin : begin + length] = bytes(length)
            elif dice < 0.6:
                handle.flush()
            elif dice < 0.62:
                child.order("cut", device=1, into=100 + step, name=f"s{step}")
                frozen[f"s{step}"] = bytes(model)
            else:
                assert handle.pread(length, begin) == model[begin : begin + length], (step, begin, length)
        for name, content in frozen.items():
            assert libnbd_at.open(name).pread(len(model), 0) == content
        assert handle.pread(len(model), 0, flags=libnbd_at.module.CMD_FLAG_DF if structured else 0) == model
        handle.shutdown()


def test_holes_zeros_and_data_are_told_apart(tmp_path: Path, libnbd_at: Libnbd) -> None:
    with served(tmp_path):
        handle = libnbd_at.open("vol", "base:allocation")
        handle.pwrite(b"x" * BLOCK, 2 * BLOCK)
        handle.pwrite(b"x", 5 * BLOCK + 1)
        found = extents(handle, "base:allocation", 8 * BLOCK, 0)
        assert found == [(2 * BLOCK, 3), (BLOCK, 0), (2 * BLOCK, 3), (BLOCK, 0), (2 * BLOCK, 3)]
        assert extents(handle, "base:allocation", BLOCK, 2 * BLOCK - 7) == [(7, 3), (BLOCK - 7, 0)]
        one = extents(handle, "base:allocation", 8 * BLOCK, 0, libnbd_at.module.CMD_FLAG_REQ_ONE)
        assert one == [(2 * BLOCK, 3)]
        handle.trim(BLOCK, 2 * BLOCK)
        assert extents(handle, "base:allocation", 4 * BLOCK, 0) == [(4 * BLOCK, 3)]


def test_large_reads_tell_holes_instead_of_sending_zeros(tmp_path: Path, libnbd_at: Libnbd) -> None:
    length, data = 4 << 20, b"d" * 65536
    with served(tmp_path):
        handle = libnbd_at.open(structured=True)
        handle.pwrite(data, 1 << 20)
        told: list[tuple[int, int, bool]] = []

        def chunk(part: bytes, offset: int, status: int, _: object) -> int:
            told.append((offset, len(part), status == libnbd_at.module.READ_HOLE))
            return 0

        found = handle.pread_structured(length, 0, chunk)
        assert found == bytes(1 << 20) + data + bytes(length - (1 << 20) - len(data))
        assert [(offset, size) for offset, size, hole in told if not hole] == [(1 << 20, len(data))]
        assert sum(hole for _, _, hole in told) > 1


def extents(handle: Any, context: str, length: int, offset: int, flags: int = 0) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def take(name: str, _offset: int, entries: list[int], _error: Any) -> None:
        if name == context:
            found.extend(zip(entries[::2], entries[1::2], strict=True))

    handle.block_status(length, offset, take, flags)
    return found


def test_changed_since_a_snapshot(tmp_path: Path, libnbd_at: Libnbd) -> None:
    with served(tmp_path) as child:
        live = libnbd_at.open()
        live.pwrite(b"a" * 4 * BLOCK, 0)
        child.order("cut", device=1, into=10, name="monday")
        live.pwrite(b"b", BLOCK)
        live.trim(BLOCK, 3 * BLOCK)
        live.pwrite(b"c", 6 * BLOCK)
        child.order("cut", device=1, into=11, name="tuesday")
        child.order("compare", name="tuesday", device=11, base=10, label="monday")
        context = "replicator:changed:monday"
        handle = libnbd_at.open("tuesday", context, "base:allocation")
        found = extents(handle, context, 8 * BLOCK, 0)
    assert found == [(BLOCK, 0), (BLOCK, 1), (BLOCK, 0), (BLOCK, 1), (2 * BLOCK, 0), (BLOCK, 1), (BLOCK, 0)]


def test_refusals_leave_the_connection_alive(tmp_path: Path, libnbd_at: Libnbd) -> None:
    with served(tmp_path, volumes={"vol": SIZE, "ro": 1 << 20}, read_only=("ro",)):
        handle, closed = libnbd_at.open(), libnbd_at.open("ro")
        for each in (handle, closed):
            each.set_strict_mode(0)
        refused: list[tuple[int, Callable[[], object]]] = [
            (errno.EINVAL, lambda: handle.pread(512, SIZE)),
            (errno.ENOSPC, lambda: handle.pwrite(b"x" * 512, SIZE - 1)),
            (errno.EINVAL, lambda: handle.trim(512, SIZE)),
            (errno.EINVAL, lambda: handle.pread(512, 0, flags=1 << 9)),
            (errno.EPERM, lambda: closed.pwrite(b"x", 0)),
            (errno.EPERM, lambda: closed.zero(512, 0)),
            (errno.EPERM, lambda: closed.trim(512, 0)),
            (errno.EINVAL, lambda: extents(handle, "base:allocation", 512, 0)),
        ]
        for number, request in refused:
            with pytest.raises(libnbd_at.module.Error) as raised:
                request()
            assert raised.value.errnum == number
        handle.pwrite(b"y" * 4096, 0)
        fast = libnbd_at.module.CMD_FLAG_FAST_ZERO
        with pytest.raises(libnbd_at.module.Error) as raised:
            handle.zero(512, 0, flags=fast)
        assert raised.value.errnum == errno.ENOTSUP
        handle.zero(2 * BLOCK, 0, flags=fast)
        handle.cache(SIZE, 0)
        assert handle.pread(4096, 0) == bytes(4096)


def test_an_external_origin_shines_through(tmp_path: Path, libnbd_at: Libnbd) -> None:
    content = bytearray(image(tmp_path / "origin", 1 << 20))
    with served(tmp_path, volumes={"vol": 2 << 20}, origins={"vol": str(tmp_path / "origin")}):
        handle = libnbd_at.open("vol", "base:allocation")
        assert handle.pread(2 << 20, 0) == bytes(content) + bytes(1 << 20)
        handle.pwrite(b"z" * 100, 70_000)
        handle.zero(BLOCK, 5 * BLOCK)
        content[70_000:70_100] = b"z" * 100
        content[5 * BLOCK : 6 * BLOCK] = bytes(BLOCK)
        assert handle.pread(1 << 20, 0) == content
        assert extents(handle, "base:allocation", 2 << 20, 0) == [(1 << 20, 0), (1 << 20, 3)]
        with pytest.raises(libnbd_at.module.Error) as raised:
            handle.zero(BLOCK, 0, flags=libnbd_at.module.CMD_FLAG_FAST_ZERO)
        assert raised.value.errnum == errno.ENOTSUP


def test_depth_128_on_sixteen_connections(tmp_path: Path, libnbd_at: Libnbd) -> None:
    module, rng = libnbd_at.module, random.Random(3)
    content = rng.randbytes(4 << 20)
    with served(tmp_path):
        handles = [libnbd_at.open() for _ in range(16)]
        handles[0].pwrite(content, 0)
        asked: list[tuple[int, Any]] = []
        for handle in handles:
            for _ in range(128):
                buffer = module.Buffer(4096)
                offset = rng.randrange(len(content) - 4096)
                handle.aio_pread(buffer, offset)
                asked.append((offset, buffer))
        for handle in handles:
            while handle.aio_in_flight():
                handle.poll(-1)
        for handle in handles:
            for _ in range(128):
                assert handle.aio_command_completed(handle.aio_peek_command_completed())
        assert all(buffer.to_bytearray() == content[at : at + 4096] for at, buffer in asked)


def test_exports_come_go_and_grow_while_clients_are_there(tmp_path: Path, libnbd_at: Libnbd) -> None:
    with served(tmp_path) as child:
        child.order("put", name="late", device=9, size=1 << 20)
        late, vol = libnbd_at.open("late"), libnbd_at.open()
        late.pwrite(b"q" * 512, 0)
        child.order("resize", device=1, size=SIZE + BLOCK)
        vol.set_strict_mode(0)
        vol.pwrite(b"w" * BLOCK, SIZE)
        assert child.order("remove", name="late")["found"]
        with pytest.raises(libnbd_at.module.Error):
            late.pread(512, 0)
        with pytest.raises(libnbd_at.module.Error):
            libnbd_at.open("late")
        assert vol.pread(BLOCK, SIZE) == b"w" * BLOCK


def test_a_full_pool_is_enospc_and_reads_go_on(tmp_path: Path, libnbd_at: Libnbd) -> None:
    with served(tmp_path, data_bytes=2 << 20):
        handle = libnbd_at.open()
        handle.pwrite(b"f" * (2 << 20), 0)
        with pytest.raises(libnbd_at.module.Error) as raised:
            handle.pwrite(b"g", 3 << 20)
        assert raised.value.errnum == errno.ENOSPC
        assert handle.pread(1 << 20, 0) == b"f" * (1 << 20)
        handle.trim(BLOCK, 0)
        handle.pwrite(b"g", 3 << 20)
        assert handle.pread(1, 3 << 20) == b"g"


def test_what_was_answered_is_there_after_a_stop(tmp_path: Path, libnbd_at: Libnbd) -> None:
    data = os.urandom(3 << 20)
    with served(tmp_path):
        libnbd_at.open().pwrite(data, 12345)
    with served(tmp_path) as child:
        assert libnbd_at.open().pread(len(data), 12345) == data
        assert child.order("facts")["replayed"] == 0
