"""Reading a volume as of a restore point, from a replica pool, straight from the log, or both; and restoring it.

In the order of the data's way:

    logged     what a log knows of a volume: restore points, timelines, what still stands; labels; groups: their cuts
    catalogued what a pool's catalogue remembers of them
    head       a replica's volume itself as a restore point
    offer      both together: what there is of a volume, what can be had, and whether they tell one history
    source     where points come from: a pool with its catalogue, or a log; which point is meant, and how to get it
    layers     the committed transactions that lie over a base, as parts of the log, checked against each other
    overlay    which page of which frame is the newest, chunk by chunk, as packed arrays
    frames     frames out of the log, decompressed, bounded
    point      a restore point as a read-only disk: base, overlay, every touched chunk verified by its hash
    guards     whether a target may be written: not mounted, not held, large enough, empty
    target     a file, a device or a stream that takes a disk, sparse
    resume     how far an interrupted restore has come
    readback   whether a target holds what was written, and once more what was changed since
    restore    the whole: plan, guards, copy, read back
    labelling  labels: of a cut where no agent runs, of a point that a pool remembers
    receipts   waiting until the receivers have a point; patience: a daemon's and a command's waits
    lasting    a served disk under a new lease when its own fell
    archive    a log's events into another log, as they are; archive_identity, archive_registration: as whom beside it
    verify     every segment of a log: chain, index, frames
"""
