"""The replica host: follows the log, applies each transaction, restores and verifies points.

Stands over replicator, and knows nothing of agent.
"""
