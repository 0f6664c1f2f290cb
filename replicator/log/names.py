"""What each object of the object log is called. Only numbers and UUIDs become names; nothing from the wire does.

    replicator-log                             the marker: this is a log, of which version
    catalogue/VOLUME                           a VolumeEntry
    beacons/VOLUME                             the beacon (a prefix of its own: it alone is overwritten all the time)
    receivers/VOLUME/RECEIVER                  a Registration, overwritten by its receiver
    VOLUME/TIMELINE/claim                      who claimed the timeline
    VOLUME/TIMELINE/start                      the state before the first event that is kept; absent: nothing trimmed
    VOLUME/TIMELINE/FOLDER/SEQUENCE            a segment, by its first event's sequence number alone

VOLUME and RECEIVER are UUIDs as text, TIMELINE 10, FOLDER 16 and SEQUENCE 20 decimal digits. A folder has the segments
that begin in [4096 f, 4096 (f + 1)); no segment crosses a folder, so the first name of each later folder is known.
"""

from __future__ import annotations

import re
from uuid import UUID

FOLDER_NUMBERS = 4096
MARKER = "replicator-log"
CATALOGUE = "catalogue"
BEACONS = "beacons"
RECEIVERS = "receivers"
_TIMELINE_DIGITS, _FOLDER_DIGITS, _SEQUENCE_DIGITS = 10, 16, 20
_DIGITS = re.compile(r"[0-9]+", re.ASCII)


def catalogue_name(volume: UUID) -> str:
    """The volume's catalogue entry."""
    return f"{CATALOGUE}/{volume}"


def beacon_name(volume: UUID) -> str:
    """The volume's beacon."""
    return f"{BEACONS}/{volume}"


def receivers_prefix(volume: UUID) -> str:
    """What all registrations of a volume begin with, without the last slash."""
    return f"{RECEIVERS}/{volume}"


def registration_name(volume: UUID, receiver: UUID) -> str:
    """A receiver's registration for a volume."""
    return f"{receivers_prefix(volume)}/{receiver}"


def timeline_prefix(volume: UUID, timeline: int) -> str:
    """What all objects of a timeline begin with, without the last slash."""
    return f"{volume}/{timeline:0{_TIMELINE_DIGITS}d}"


def claim_name(volume: UUID, timeline: int) -> str:
    """The claim of a timeline."""
    return f"{timeline_prefix(volume, timeline)}/claim"


def start_name(volume: UUID, timeline: int) -> str:
    """The start of what is kept."""
    return f"{timeline_prefix(volume, timeline)}/start"


def folder_of(sequence: int) -> int:
    """The folder whose numbers include `sequence`."""
    return sequence // FOLDER_NUMBERS


def folder_name(volume: UUID, timeline: int, folder: int) -> str:
    """A folder, without the last slash."""
    return f"{timeline_prefix(volume, timeline)}/{folder:0{_FOLDER_DIGITS}d}"


def segment_name(volume: UUID, timeline: int, sequence: int) -> str:
    """The segment that begins with `sequence`."""
    return f"{folder_name(volume, timeline, folder_of(sequence))}/{sequence:0{_SEQUENCE_DIGITS}d}"


def _numbers(names: list[str], digits: int) -> list[int]:
    return sorted(int(name) for name in names if len(name) == digits and _DIGITS.fullmatch(name))


def timelines_in(names: list[str]) -> list[int]:
    """The timelines among `names`, ascending; what isn't one is passed over."""
    return _numbers(names, _TIMELINE_DIGITS)


def folders_in(names: list[str]) -> list[int]:
    """The folders among `names`, ascending."""
    return _numbers(names, _FOLDER_DIGITS)


def sequences_in(names: list[str], folder: int) -> list[int]:
    """The segments' first sequence numbers among the `names` of `folder`, ascending."""
    return [number for number in _numbers(names, _SEQUENCE_DIGITS) if folder_of(number) == folder]


def uuids_in(names: list[str]) -> list[UUID]:
    """The UUIDs among `names`, in the spelling that we write, ascending."""
    found = []
    for name in names:
        try:
            volume = UUID(name)
        except ValueError:
            continue
        if str(volume) == name:
            found.append(volume)
    return sorted(found)
