"""The commands that hosts add by the entry-point group `replicator.commands`, found without importlib.metadata.

That module brings an e-mail parser with it and looks at every distribution: 45 ms of CPU, a seventh of a small
incremental backup. The format is that of the specification "Entry points" of PyPA: an INI file `entry_points.txt` in a
distribution's `.dist-info` folder, with lines `NAME = MODULE:FUNCTION`. What lies elsewhere (in a zip, in an egg) is
looked for the long way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

import click

GROUP = "replicator.commands"
Commands = Callable[[], list[click.Command]]


def host_commands(name: str) -> Iterator[Commands]:
    """What the entry points of this name give, in the order of sys.path."""
    places = [place for folder in sys.path for place in _places(folder or ".", name)]
    if not places:
        from importlib.metadata import entry_points

        for point in entry_points(group=GROUP, name=name):
            yield point.load()
    for place in dict.fromkeys(places):
        module, _, function = place.partition(":")
        yield getattr(import_module(module), function)


def _places(folder: str, name: str) -> Iterator[str]:
    """MODULE:FUNCTION of the entry points of this name, of the distributions in `folder`."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - pathlib costs more than all else here
    except OSError:
        return
    for each in names:
        if each.endswith(".dist-info"):
            try:
                with open(f"{folder}/{each}/entry_points.txt", encoding="utf-8") as file:  # noqa: PTH123 - as above: pathlib's open is slower
                    yield from named_places(file.read(), name)
            except (OSError, UnicodeDecodeError):
                continue


def named_places(text: str, name: str) -> list[str]:
    """MODULE:FUNCTION of the entry points of this name in our group, from the text of an entry_points.txt."""
    found, inside = [], False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and line.partition("=")[0].strip() == name:
            found.append(line.partition("=")[2].partition("[")[0].strip())
    return found
