"""What bad input gets: the exit code, a typed error with what mends it, no traceback, and no file changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Command, tree_of
from tests.support.pool_owner import owned_by_child
from tests.support.thinpools import Patient

WRONG_USAGE = [
    "pool create NEW",
    "pool create NEW --size ten",
    "pool create NEW --size 10MB",
    "pool create NEW --size 0",
    "pool create NEW --size 1GiB --block-size 96KiB",
    "pool create NEW --size 1GiB --block-size 32KiB",
    "pool create NEW --size 4GiB --block-size 2GiB",
    "pool create NEW --size 1GiB --block-size 64KiB --preset snapshots",
    "pool create NEW --size 1GiB --low-water much",
    "pool create NEW --size 1GiB --preset fast",
    "pool size-hint --size 0",
    "pool size-hint",
    "pool status dm:pool",
    "pool check lvm:vg/pool",
    "pool frobnicate POOL",
    "volume create POOL new",
    "volume create POOL new --size 1000",
    "volume create POOL new --size 0",
    "volume create POOL a@b --size 1MiB",
    "volume create POOL a/b --size 1MiB",
    "volume create POOL a:b --size 1MiB",
    "volume create POOL 6f9619ff-8b86-d011-b42d-00c04fc964ff --size 1MiB",
    "volume rename POOL v a@b",
    "volume resize POOL v --size 1000",
    "volume resize POOL v --size -1MiB",
    "volume import POOL new ODD",
    "volume import POOL new EMPTY",
    "volume import POOL new POOL",
    "volume export POOL v OUT --size 0",
    "volume export POOL v POOL",
    "volume diff POOL v",
    "connect POOL v --for vmware",
    "init publisher",
    "config check ODD",
    "unknown",
    "pool status POOL --frobnicate",
    "agent run POOL --log OUT --bandwidth 0",
    "agent run POOL --log OUT --listen foo",
    "log show OUT v --timeline -1",
    "log show OUT v --from 0",
    "log archive OUT NEW --follow --every 0s",
]
NOT_FOUND = [
    "pool status NEW",
    "pool check NEW",
    "pool dump NEW",
    "pool grow NEW --data +1MiB",
    "pool status HERE",
    "pool create HERE/no/such --size 1MiB",
    "volume list NEW",
    "volume snapshot POOL nobody s",
    "volume clone POOL nobody c",
    "volume rename POOL nobody c",
    "volume rollback POOL v nothing --yes",
    "volume rollback POOL nobody nothing --yes",
    "volume delete POOL nobody --yes",
    "volume resize POOL nobody --size 1MiB",
    "volume import POOL new MISSING",
    "volume export POOL nobody OUT",
    "volume export POOL thin-99 OUT",
    "volume diff POOL v nobody",
    "volume create POOL over --origin MISSING",
    "connect POOL nobody --for qemu",
    "connect POOL v --for qemu",
    "config check MISSING",
]
CONFLICT = [
    "pool create POOL --size 1MiB",
    "pool create FULL --size 1MiB",
    "pool create ODD --size 1MiB",
    "pool release-metadata-snap POOL",
    "volume create POOL v --size 1MiB",
    "volume create POOL s --size 1MiB",
    "volume snapshot POOL v v",
    "volume clone POOL v s",
    "volume rename POOL v s",
    "volume import POOL s GOOD --yes",
    "init agent --to ODD",
]
ASKED = [
    "volume delete POOL v",
    "volume rollback POOL v s",
    "volume resize POOL v --size 512KiB",
    "volume import POOL v GOOD",
]


@pytest.fixture
def ground(command: Command, pool: Path, tmp_path: Path) -> dict[str, Path]:
    """What the words in capitals stand for; POOL has a volume `v` and its snapshot `s`."""
    command("volume", "create", pool, "v", "--size", "1MiB")
    command("volume", "snapshot", pool, "v", "s")
    (tmp_path / "odd.bin").write_bytes(b"x" * 1000)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "good").write_bytes(b"x" * 4096)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"precious")
    (tmp_path / "here").mkdir()
    return {
        "POOL": pool,
        "NEW": tmp_path / "new",
        "HERE": tmp_path / "here",
        "FULL": tmp_path / "full",
        "ODD": tmp_path / "odd.bin",
        "EMPTY": tmp_path / "empty",
        "GOOD": tmp_path / "good",
        "MISSING": tmp_path / "missing-agent.toml",
        "OUT": tmp_path / "out",
    }


def words(line: str, ground: dict[str, Path]) -> list[str]:
    return [
        str(ground[head]) + ("/" + tail if tail else "") if (head := word.partition("/")[0]) in ground else word
        for word in line.split()
        for tail in [word.partition("/")[2]]
    ]


CASES = [
    *[(2, "usage", line) for line in WRONG_USAGE],
    *[(5, "not-found", line) for line in NOT_FOUND],
    *[(4, "conflict", line) for line in CONFLICT],
    *[(1, "failed", line) for line in ASKED],
]


@pytest.mark.parametrize(("code", "kind", "line"), CASES, ids=[line for _, _, line in CASES])
def test_is_refused_by_its_code_and_changes_nothing(
    command: Command, ground: dict[str, Path], tmp_path: Path, code: int, kind: str, line: str
) -> None:
    before = tree_of(tmp_path)
    arguments = words(line, ground)
    ran = command(*arguments, "--json", code=code)
    assert ran.error["kind"] == kind and ran.error["message"]
    assert ran.out == ""
    people = command(*arguments, code=code)
    assert people.err.startswith("replicator: ") and people.out == ""
    after = tree_of(tmp_path)
    for each in (before, after):  # owners leave their locks and their empty `dirty`
        for name in ("pool/lock", "pool/dirty", "pool/importing", "here/lock"):
            each.pop(name, None)
    assert after.keys() == before.keys()
    changed = [name for name in before if before[name] != after[name]]
    assert set(changed) <= {"pool/catalog.db"}, "an opening for writing is counted there, and nothing else"


def test_an_unknown_name_is_told_the_names_there_are(command: Command, ground: dict[str, Path]) -> None:
    for line in ("volume export POOL nobody OUT", "volume diff POOL nobody v", "volume delete POOL nobody --yes"):
        message = command(*words(line, ground), "--json", code=5).error["message"]
        assert "nobody" in message and "s" in message.split(": ")[-1] and "v" in message.split(": ")[-1]


def test_a_pool_whose_owner_has_no_socket_is_refused_with_its_pid(command: Command, pool: Path) -> None:
    """Commands wait for an owner that may be about to end; this one's limit is cut short by ending it."""
    from replicator.errors import ConflictError
    from replicator.pool.inspection import settled
    from replicator.pool.opening import open_pool

    with owned_by_child(pool, control=False) as child:
        for attempt in (lambda: open_pool(pool, owner_s=0.0), lambda: settled(pool, owner_s=0.0).__enter__()):
            with pytest.raises(ConflictError, match=str(child.pid)):
                attempt()


def test_a_metadata_file_that_isnt_dm_thin_is_damage_and_says_where(command: Command, tmp_path: Path) -> None:
    for name, content in (("zeros", bytes(1 << 20)), ("noise", b"x" * (1 << 20)), ("short", b"x" * 100)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metadata").write_bytes(content)
        (folder / "data").write_bytes(bytes(1 << 20))
        for line in (["pool", "status"], ["pool", "dump"], ["volume", "list"]):
            error = command(*line, folder, "--json", code=3).error
            assert error["kind"] == "format" and "metadata" in error["message"] and "expected" in error["message"]
        assert command("pool", "check", folder, "--json", code=3).document["totals"]["damage"] == 1


def test_a_damaged_node_ends_with_3_in_every_command_that_meets_it(
    command: Command, pool: Path, image: Path, tmp_path: Path
) -> None:
    command("volume", "import", pool, "v", image)
    command("volume", "snapshot", pool, "v", "s")
    patient = Patient(pool / "metadata")
    root = patient.root_of(1)
    block = patient.read(root)
    block[50] ^= 1
    patient.write(root, block)
    for line in (["pool", "check", pool], ["pool", "dump", pool], ["volume", "export", pool, "s", tmp_path / "out"]):
        command(*line, code=3)
    assert not (tmp_path / "out").exists()


def test_a_full_pool_refuses_the_import_and_has_all_its_room_again(
    command: Command, tmp_path: Path, image: Path
) -> None:
    command("pool", "create", tmp_path / "p", "--size", "256KiB", "--metadata-size", "4MiB")
    error = command("volume", "import", tmp_path / "p", "v", image, "--json", code=1).error
    assert error["kind"] == "no-space" and "grow" in error["mend"]
    shown = command("pool", "status", tmp_path / "p", "--json").document
    assert (shown["data"]["used_blocks"], shown["volumes"]) == (0, 0)
    command("pool", "check", tmp_path / "p")


@pytest.mark.parametrize(
    "line", ["restore POOL v@1 --to OUT", "restore POOL v@1 --to -", "serve POOL v", "volume export POOL v OUT"]
)
def test_a_nul_byte_is_wrong_usage_wherever_it_stands(
    command: Command, ground: dict[str, Path], tmp_path: Path, line: str
) -> None:
    """No shell can give one; a program that calls us may."""
    before, arguments = tree_of(tmp_path), words(line, ground)
    for at in range(1, len(arguments)):
        spoilt = [f"{each}\0x" if i == at else each for i, each in enumerate(arguments)]
        error = command(*spoilt, "--json", code=2).error
        assert error["kind"] == "usage" and "NUL" in error["message"]
    assert tree_of(tmp_path) == before
