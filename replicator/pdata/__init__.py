"""Persistent data: shadowed B-trees, space maps and their transaction manager over 4 KiB metadata blocks.

Stands between thin, whose trees these are, and blockdev.
"""
