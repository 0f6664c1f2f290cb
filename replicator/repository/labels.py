"""Labels as a catalogue takes them: the log allows more than a command line can name."""

from __future__ import annotations

from contextlib import suppress

from replicator.errors import UsageError
from replicator.history.names import LABELS_LIMIT, check_label


def valid_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Those that a command line could name, each once, as many as a point may have; an event may carry others."""
    kept = []
    for label in dict.fromkeys(labels):
        with suppress(UsageError):
            kept.append(check_label(label))
    return tuple(kept[:LABELS_LIMIT])
