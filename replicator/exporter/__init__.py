"""The process that has a pool open: NBD listeners and their socket loop, and the control socket.

Stands over pool; no diff, hash, compression or upload is done here.
"""
