"""Hosts' commands are found as packaging tools write them down, and as importlib.metadata finds them."""

from __future__ import annotations

from importlib.metadata import entry_points

from replicator.cli.hosts import GROUP, host_commands, named_places

TEXT = """[console_scripts]
agent = wrong:one

[replicator.commands]
agent = agent.cli:commands
receiver=receiver.cli:commands [extra]

[other]
agent = other:one
"""


def test_names_are_found_in_their_group_only() -> None:
    assert named_places(TEXT, "agent") == ["agent.cli:commands"]
    assert named_places(TEXT, "receiver") == ["receiver.cli:commands"]
    assert named_places(TEXT, "none") == named_places("", "agent") == []


def test_it_finds_what_the_long_way_finds() -> None:
    for name in ("agent", "receiver"):
        long_way = {point.load() for point in entry_points(group=GROUP, name=name)}
        assert long_way and set(host_commands(name)) == long_way
    assert not list(host_commands("nobody's"))
