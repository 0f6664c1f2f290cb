"""A pool as its users see it: catalogue, cut, lease, reserve, commit; in this process or through its owner's socket.

Stands between exporter and the hosts, which use it, and thin.
"""
