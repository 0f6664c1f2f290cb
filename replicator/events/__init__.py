"""What travels: event values, their codec, the chain that orders them, and the compression of chunks.

Pure: no I/O, no clock, no randomness. In the order of the data's way:

    digests    crc32c and xxh3-128 over any buffer
    values     small values with bounds: StateName, Position, Counts, names, labels
    pages      which 4 KiB pages of a chunk changed, as 16-bit masks
    chunks     the events that carry data: ChunksDiscarded, ChunksZeroed, ChunksWritten
    frames     pages of neighbouring chunks, compressed at once; and back, bounded
    bodies     the events that carry facts: VolumeCreated ... TimelineEnded
    fields     bounded little-endian fields, the alphabet of the codecs
    layouts    which body has which fields in which order
    header     the 128 bytes before each body
    codec      a whole event to bytes and back
    record     the frame of small values that stand outside the chain
    state      what a stream has come to: kept by segments, and by a receiver beside its pool
    fold       the next event's state: which event may follow which
    chain      sealing the next event, and the checker of a stream
    beacon     the agent's last word about a volume
"""
