"""The source host: cuts, extracts what changed, publishes it to the log, and keeps the base until it is there.

Stands over replicator, and knows nothing of receiver.
"""
