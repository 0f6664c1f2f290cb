"""The agent's configuration: what is read, what is refused and how; and the template that people start from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agent.config import TEMPLATE, AgentConfig, config_of, load_config
from agent.hooks import Hooks
from agent.relief import WhenFull
from replicator.errors import NotFoundError, UsageError
from replicator.history.points import Consistency
from replicator.units import MIB

LEAST = 'pool = "p"\nlog = "l"\n'


def test_the_least_there_must_be() -> None:
    assert config_of(tomllib.loads(LEAST)) == AgentConfig(Path("p"), "l")


def test_everything_there_is() -> None:
    text = LEAST.replace(
        "\nlog",
        '\nlisten = ["unix:/s", "tcp:h:1"]\ninterval = "500ms"\nvolumes = ["a"]\nbandwidth = "5MiB/s"\nlevel = 3\nlog',
    )
    text += """threads = 1
    when_full = "stop-writes"
    attest = "7d"
    adopt = true
    socket_group = "disk"
    [tls]
    certificate = "c"
    key = "k"
    ca = "a"
    required = true
    [hooks]
    freeze = ["f", "x"]
    thaw = ["t"]
    limit = "2s"
    consistency = "application"
    [[group]]
    name = "db"
    volumes = ["b", "c"]
    interval = "5s"
    [[group]]
    name = "rest"
    volumes = ["d"]
    """
    found = config_of(tomllib.loads(text))
    assert (found.listen, found.interval_s, found.volumes) == (("unix:/s", "tcp:h:1"), 0.5, ("a",))
    assert (found.bandwidth_bytes_s, found.level, found.threads, found.socket_group) == (5 * MIB, 3, 1, "disk")
    assert found.tls == {"certificate": "c", "key": "k", "ca": "a", "required": "yes"}
    assert found.hooks == Hooks(("f", "x"), ("t",), 2.0, Consistency.APPLICATION)
    assert [(each.name, each.volumes, each.interval_s) for each in found.groups] == [
        ("db", ("b", "c"), 5.0),
        ("rest", ("d",), None),
    ]
    assert [str(each.schedule(found.schedule)) for each in found.groups] == ["every 5 s", "every 0.5 s"]
    assert (found.when_full, found.attest_s, found.adopt) == (WhenFull.STOP_WRITES, 7 * 86400.0, True)
    assert found.effective()["pool"] == "p" and found.effective()["schedule"] == "every 0.5 s"


def test_the_kind_of_log_decides_the_interval_where_nothing_is_said() -> None:
    assert str(config_of({"pool": "p", "log": "l"}).schedule) == "every 1 s"
    assert str(config_of({"pool": "p", "log": "s3://bucket/x"}).schedule) == "every 10 s"
    found = config_of({"pool": "p", "log": "l", "cron": "0 2 * * *", "group": [{"name": "g", "volumes": ["v"]}]})
    assert str(found.schedule) == str(found.groups[0].schedule(found.schedule)) == "cron 0 2 * * *"


def test_the_template_is_a_configuration_and_so_is_all_that_it_comments_out() -> None:
    assert config_of(tomllib.loads(TEMPLATE)).interval_s == 1.0
    lines = [
        line.removeprefix("# ") if "=" in line or line.startswith("# [") else line for line in TEMPLATE.split("\n")
    ]
    whole = config_of(tomllib.loads("\n".join(lines)))
    assert whole.hooks.freeze and whole.tls["ca"] and whole.groups and whole.bandwidth_bytes_s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log = 'l'", "pool is missing"),
        (LEAST + "intervall = '1s'", "unknown key intervall"),
        (LEAST + "[hooks]\nfrost = ['x']", "unknown key hooks.frost"),
        (LEAST + "interval = 1", "interval: expected a text"),
        (LEAST + "interval = 'often'", "not a duration"),
        (LEAST + "interval = '1ms'", "too short"),
        (LEAST + "interval = '1s'\ncron = '* * * * *'", "exclude each other"),
        (LEAST + "cron = 'now and then'", "no cron expression"),
        (LEAST + "cron = '0 0 31 2 *'", "cron"),
        (LEAST + "[[group]]\nname='g'\nvolumes=['v']\ncron='nie'", "no cron expression"),
        (LEAST + "when_full = 'panic'", "neither drop-base nor stop-writes"),
        (LEAST + "attest = '1s'", "too often"),
        (LEAST + "level = '3'", "level: expected a whole number"),
        (LEAST + "level = 99", "level 99"),
        (LEAST + "threads = 0", "0 threads"),
        (LEAST + "bandwidth = '5 MB'", "not a size"),
        (LEAST + "listen = [1]", "listen: expected a list"),
        (LEAST + "tls = 5", "tls: expected a table"),
        (LEAST + "[hooks]\nfreeze = ['x']", "come together"),
        (LEAST + "[hooks]\nconsistency = 'perfect'", "perfect"),
        (LEAST + "[[group]]\nname = 'g'", "a group has volumes"),
        (LEAST + "[[group]]\nname = 'a/b'\nvolumes = ['v']", "can't be a name"),
        (LEAST + "[[group]]\nname='g'\nvolumes=['v']\n[[group]]\nname='h'\nvolumes=['v']", "in two groups"),
        ("pool = ", "isn't TOML"),
    ],
)
def test_what_is_refused_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        load_config(path)
    assert str(path) in refused.value.message


def test_unknown_keys_are_told_the_known_ones() -> None:
    with pytest.raises(UsageError) as refused:
        config_of({"pool": "p", "log": "l", "lisen": []})
    assert "listen" in str(refused.value.mend)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as refused:
        load_config(tmp_path / "none.toml")
    assert "replicator init agent" in str(refused.value.mend)
