"""What follows from events, as pure functions: no I/O, no clock.

In the order in which a question is answered: `names` (what names and labels may be), `points` (restore points, and
how people write them), `resolve` (which point is meant), `lineage` (timelines and ancestry), `plan` (how to get one),
`retention` (which stay), `protection` (what would be lost now).
"""
