"""What a daemon publishes of the volumes that its configuration names: who is there, came, or was made again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from agent.config import GroupConfig
from agent.job import ask_agent
from agent.status import text
from replicator.errors import NotFoundError
from replicator.events.state import Life
from replicator.log.opening import open_log
from replicator.pool.volumes import delete_volume, rename
from replicator.units import MIB
from tests.support.agent_daemons import Running, config_of, running
from tests.support.agent_world import VOLUME, Replica, SourceHost

OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")


def _states(made: Running) -> dict[str, tuple[str, str | None]]:
    return {each["volume"]: (each["state"], each["group"]) for each in made.agent.status({})["volumes"]}


def _uuids(made: Running) -> set[tuple[str, str]]:
    return {(each["uuid"], each["state"]) for each in made.agent.status({})["volumes"]}


def test_a_member_that_isnt_there_is_told_and_hinders_nobody(host: SourceHost, tmp_path: Path) -> None:
    """At the start; and once it is made, it is cut with its group, at one instant."""
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    config = config_of(host, tmp_path, groups=(GroupConfig("app", ("disk", "made-later")),))
    with running(host, config) as made:
        assert {each["volume"] for each in ask_agent(host.path, "snapshot")["points"]} == {"disk", "other"}
        assert _states(made) == {
            "disk": ("PROTECTED", "app"),
            "other": ("PROTECTED", None),
            "made-later": ("NOT PROTECTED", None),
        }
        (told,) = [each for each in made.agent.status({})["volumes"] if each["volume"] == "made-later"]
        assert "group app" in told["headline"] and "volume create" in told["mend"] and told["severity"] == 2
        assert "made-later: NOT PROTECTED" in text(made.agent.status({}))
        later = host.create("made-later", MIB, uuid=UUID(int=77), dev_id=40)
        assert _states(made)["made-later"] == ("NOT PROTECTED", None), "no worker has it yet"
        made.agent.plan_workers(host.pool.view())
        points = ask_agent(host.path, "snapshot", volumes=["disk"], labels=["both"])["points"]
        assert sorted(each["volume"] for each in points) == ["disk", "made-later"]
        assert _states(made)["made-later"] == ("PROTECTED", "app")
    (commit,) = Replica.of(open_log(config.log), later).commits[-1:]
    assert commit.group is not None and [uuid for uuid, _ in commit.group.members] == sorted([VOLUME, later])


def test_a_member_made_again_under_its_name_joins_its_group(host: SourceHost, tmp_path: Path) -> None:
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    config = config_of(host, tmp_path, groups=(GroupConfig("app", ("disk", "other")),))
    with running(host, config) as made:
        ask_agent(host.path, "snapshot")
        delete_volume(host.pool, "other", while_published=True)
        again = host.create("other", MIB, uuid=UUID(int=77), dev_id=40)
        host.create("new", MIB, uuid=UUID(int=78), dev_id=41)
        with suppress(NotFoundError):  # the cut that meets its absence
            ask_agent(host.path, "snapshot", volumes=["disk"])
        made.agent.plan_workers(host.pool.view())
        named = {each["volume"] for each in ask_agent(host.path, "snapshot", labels=["all"])["points"]}
        assert named == {"disk", "other", "new"}
        assert set(_states(made).values()) == {("PROTECTED", "app"), ("PROTECTED", None)}
    assert Replica.of(open_log(config.log), again).points
    assert open_log(config.log).reader(OTHER, 1).tail().life is Life.DELETED


def test_the_only_volume_made_again_is_published_as_another(host: SourceHost, tmp_path: Path) -> None:
    """Its worker ends before the agent looked for new volumes."""
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    with running(host, config_of(host, tmp_path, volumes=("other",))) as made:
        ask_agent(host.path, "snapshot")
        rename(host.pool, "other", "old")
        host.create("other", MIB, uuid=UUID(int=77), dev_id=40)
        delete_volume(host.pool, "old", while_published=True)
        while not made.ready.wait(0.02) and (str(UUID(int=77)), "PROTECTED") not in _uuids(made):
            continue
        assert made.error is None
        assert [each["volume"] for each in ask_agent(host.path, "snapshot", volumes=["other"])["points"]] == ["other"]


def test_a_volume_that_gets_its_groups_name_later_is_told(host: SourceHost, tmp_path: Path) -> None:
    """It has a worker of its own by then: what the group promises isn't so until the agent begins anew."""
    config = config_of(host, tmp_path, groups=(GroupConfig("app", ("disk", "later")),))
    with running(host, config) as made:
        new = host.create("tmp", MIB, uuid=UUID(int=77), dev_id=40)
        made.agent.plan_workers(host.pool.view())
        rename(host.pool, "tmp", "later")
        made.agent.plan_workers(host.pool.view())
        ask_agent(host.path, "snapshot")
        (told,) = [each for each in made.agent.status({})["volumes"] if each["uuid"] == str(new)]
        assert "not at one instant with group app" in told["headline"] and told["mend"] == "restart the agent"
        rename(host.pool, "later", "tmp")
        made.agent.plan_workers(host.pool.view())
        (told,) = [each for each in made.agent.status({})["volumes"] if each["uuid"] == str(new)]
        assert told["state"] == "PROTECTED"


def test_a_member_made_again_joins_a_group_whose_round_is_far_away(host: SourceHost, tmp_path: Path) -> None:
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    config = config_of(host, tmp_path, groups=(GroupConfig("app", ("disk", "other"), cron="0 2 * * *"),))
    with running(host, config) as made:
        ask_agent(host.path, "snapshot")
        delete_volume(host.pool, "other", while_published=True)
        again = host.create("other", MIB, uuid=UUID(int=77), dev_id=40)
        made.agent.plan_workers(host.pool.view())
        points = ask_agent(host.path, "snapshot", volumes=["disk"])["points"]
        assert {each["volume"] for each in points} == {"disk", "other"}
    assert Replica.of(open_log(config.log), again).points


def test_volumes_that_are_named_and_not_there_are_told(host: SourceHost, tmp_path: Path) -> None:
    """Of `volumes`; what it leaves out is named, and no fault. Where none is there, the start is refused."""
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    with running(host, config_of(host, tmp_path, volumes=("gone", "disk"))) as made:
        assert [each["volume"] for each in ask_agent(host.path, "snapshot")["points"]] == ["disk"]
        states = {name: state for name, (state, _) in _states(made).items()}
        assert states == {"disk": "PROTECTED", "gone": "NOT PROTECTED"}
        assert made.agent.status({})["left_out"] == ["other"]
        assert "not published, as configured: other" in text(made.agent.status({}))
    nothing = Running(host, config_of(host, tmp_path, volumes=("gone",)))
    with pytest.raises(NotFoundError, match="gone"):
        nothing.agent.run()
