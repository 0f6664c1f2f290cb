"""Which names an object log uses, so that whoever serves one to others touches nothing else. Pure.

    object        replicator-log, catalogue/VOLUME, beacons/VOLUME, receivers/VOLUME/RECEIVER,
                  VOLUME/TIMELINE/claim, VOLUME/TIMELINE/start, VOLUME/TIMELINE/FOLDER/SEQUENCE
    publisher's   beacons/VOLUME, catalogue/VOLUME: replaced in the course of things
    registration  receivers/VOLUME/RECEIVER: the same, by a receiver; says what a trim may delete
    segment       VOLUME/TIMELINE/FOLDER/SEQUENCE: the only objects that may be large
    start         VOLUME/TIMELINE/start: says what was trimmed
    prefix        what is listed: the root, catalogue, receivers/VOLUME, VOLUME, VOLUME/TIMELINE, VOLUME/TIMELINE/FOLDER
    owned         what a publisher sweeps: VOLUME/TIMELINE/, beacons/VOLUME, catalogue/VOLUME

A name is a sequence of such words and nothing else, so none leads out of the log's folder.
"""

from __future__ import annotations

import re

from replicator.log import names

_VOLUME = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TIMELINE = f"{_VOLUME}/[0-9]{{10}}"
_FOLDER = f"{_TIMELINE}/[0-9]{{16}}"
_BESIDE = f"(?:{names.CATALOGUE}|{names.BEACONS})/{_VOLUME}"
_RECEIVER = f"{names.RECEIVERS}/{_VOLUME}/{_VOLUME}"
_SEGMENT_NAME = f"{_FOLDER}/[0-9]{{20}}"
_OBJECT = re.compile(f"{names.MARKER}|{_BESIDE}|{_RECEIVER}|{_TIMELINE}/(?:claim|start)|{_SEGMENT_NAME}", re.ASCII)
_SEGMENT = re.compile(_SEGMENT_NAME, re.ASCII)
_PUBLISHERS = re.compile(_BESIDE, re.ASCII)
_REGISTRATION = re.compile(_RECEIVER, re.ASCII)
_START = re.compile(f"{_TIMELINE}/start", re.ASCII)
_PREFIX = re.compile(
    f"|{names.CATALOGUE}|{names.BEACONS}|{names.RECEIVERS}(?:/{_VOLUME})?|{_VOLUME}|{_TIMELINE}|{_FOLDER}", re.ASCII
)
_OWNED = re.compile(f"{_TIMELINE}/|{_BESIDE}", re.ASCII)


def is_object(name: str) -> bool:
    """Whether an object may be called so."""
    return _OBJECT.fullmatch(name) is not None


def is_segment(name: str) -> bool:
    """Whether an object of that name holds events; every other one is a record."""
    return _SEGMENT.fullmatch(name) is not None


def is_publishers(name: str) -> bool:
    """Whether an object of that name is overwritten by agents in the course of things."""
    return _PUBLISHERS.fullmatch(name) is not None


def is_registration(name: str) -> bool:
    """Whether an object of that name says how far a receiver is."""
    return _REGISTRATION.fullmatch(name) is not None


def is_start(name: str) -> bool:
    """Whether an object of that name says what was trimmed; whoever writes it hides events."""
    return _START.fullmatch(name) is not None


def is_prefix(name: str) -> bool:
    """Whether a folder may be called so."""
    return _PREFIX.fullmatch(name) is not None


def is_owned(prefix: str) -> bool:
    """Whether a publisher sweeps what begins so."""
    return _OWNED.fullmatch(prefix) is not None
