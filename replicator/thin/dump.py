"""A pool's metadata as thin_dump's XML: superblock, devices, and their mappings as runs.

Used by `pool dump`, and by tests that hold it against thin_dump itself. The text is what thin-provisioning-tools 0.9.0
prints, so that every thin_restore reads it; the Rust tools leave out `flags` and write what devices share as <def> and
<ref>. `uuid` is always empty, as theirs is: the kernel keeps none.

    <superblock uuid="" time= transaction= flags= version= data_block_size= nr_data_blocks=>
      <device dev_id= mapped_blocks= transaction= creation_time= snap_time=>
        <range_mapping origin_begin= data_begin= length= time=/>
        <single_mapping origin_block= data_block= time=/>
      </device>
    </superblock>

Of a metadata snapshot nr_data_blocks is 0, since a held copy has no space maps. Pieces come as they are read: memory
doesn't grow with the pool.
"""

from __future__ import annotations

from collections.abc import Iterator

from replicator.thin.runs import MappedRuns
from replicator.thin.view import DeviceEntry, PoolView


def dump(view: PoolView) -> Iterator[str]:
    """The XML document of `view` (live or held), in pieces of whole lines; FormatError for damaged metadata."""
    block = view.superblock
    yield (
        f'<superblock uuid="" time="{block.time}" transaction="{block.transaction_id}" flags="{block.flags}" '
        f'version="{block.version}" data_block_size="{block.data_block_sectors}" '
        f'nr_data_blocks="{block.data_space_map.nr_blocks}">\n'
    )
    for entry in view.devices():
        yield _device_line(entry)
        for runs in view.mapped_runs(entry.root):
            yield _mapping_lines(runs)
        yield "  </device>\n"
    yield "</superblock>\n"


def _device_line(entry: DeviceEntry) -> str:
    details = entry.details
    return (
        f'  <device dev_id="{entry.dev_id}" mapped_blocks="{details.mapped_blocks}" '
        f'transaction="{details.transaction_id}" creation_time="{details.creation_time}" '
        f'snap_time="{details.snapshotted_time}">\n'
    )


def _mapping_lines(runs: MappedRuns) -> str:
    columns = (runs.virtual_begin, runs.data_begin, runs.length_blocks, runs.time)
    return "".join(
        f'    <single_mapping origin_block="{virtual}" data_block="{data}" time="{time}"/>\n'
        if length == 1
        else f'    <range_mapping origin_begin="{virtual}" data_begin="{data}" length="{length}" time="{time}"/>\n'
        for virtual, data, length, time in zip(*(column.tolist() for column in columns), strict=True)
    )
