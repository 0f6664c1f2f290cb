"""What a volume's name and a restore point's label may be, so that `VOLUME@POINT` reads one way only.

Stands before points: a specification is split at its first `@`, so names hold none.

    name     1 to 255 bytes of UTF-8, printable, no `@` `/` `:`, no blank at an end, not beginning with `-`;
             not a UUID (wherever a name stands, a UUID may)
    label    1 to 255 bytes of UTF-8, printable, no `@` `/`, no blank at an end, not beginning with `-` or `+`;
             not digits only (a number), not `N:M` (a number on a timeline), not a time, not `latest`

Invariants
  N1  A valid label, written behind `@`, is parsed as that label.
  N2  A valid name is never parsed as a UUID, an address or an option.

Failures: UsageError, saying which rule, since a person typed it.
"""

from __future__ import annotations

import re
from uuid import UUID

from replicator.errors import UsageError

NAME_LIMIT_BYTES = 255
"""What a file name may have: names become NBD export names (4,096) and parts of LVM names, never longer than this."""

LABELS_LIMIT = 32
"""Labels of one restore point: more is a script gone wild, and each stands in every event and catalogue row."""

LATEST = "latest"

_DIGITS = re.compile(r"\d+", re.ASCII)
_ON_TIMELINE = re.compile(r"\d+:\d+", re.ASCII)
TIME_FORM = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?\s*(Z|[+-]\d{2}(?::?\d{2})?)?",
    re.ASCII,
)
"""ISO 8601: date, or date and time to the minute, second or fraction; then `Z` or an offset, or neither."""


def check_name(name: str) -> str:
    """`name`, or UsageError with the rule it breaks."""
    _check_text("name", name, "@/:")
    if name in (".", ".."):
        raise UsageError(f"{name!r} can't be a name: it is a folder everywhere else")
    if name.startswith("-"):
        raise UsageError(f"{name!r} can't be a name: it begins like an option")
    if is_uuid(name):
        raise UsageError(f"{name!r} can't be a name: it is a UUID, which stands for the volume that has it")
    return name


def check_label(label: str) -> str:
    """`label`, or UsageError with the rule it breaks."""
    _check_text("label", label, "@/")
    for broken, why in (
        (label.startswith(("-", "+")), "it begins like a time before now"),
        (_DIGITS.fullmatch(label), "digits are a transaction's number"),
        (_ON_TIMELINE.fullmatch(label), "it reads as a number on a timeline"),
        (TIME_FORM.fullmatch(label), "it reads as a time"),
        (label == LATEST, "that is the newest point there is"),
    ):
        if broken:
            raise UsageError(f"{label!r} can't be a label: {why}")
    return label


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID as people write it, with its dashes or without."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _check_text(what: str, text: str, forbidden: str) -> None:
    try:
        length = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} can't be a {what}: it isn't text") from None
    if not 1 <= length <= NAME_LIMIT_BYTES:
        raise UsageError(f"a {what} has 1 to {NAME_LIMIT_BYTES} bytes, this one has {length}")
    if not text.isprintable() or text != text.strip():
        raise UsageError(f"{text!r} can't be a {what}: it holds what doesn't print, or ends in a blank")
    for character in forbidden:
        if character in text:
            raise UsageError(f"{text!r} can't be a {what}: it holds {character!r}")
