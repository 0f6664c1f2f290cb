"""The command line's frame, and the groups of commands that belong to neither host.

Stands over the whole core; agent and receiver add their groups by the entry-point group replicator.commands.
"""
