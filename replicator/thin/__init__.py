"""Thin provisioning on persistent trees, in the format of the kernel's dm-thin; the rooms in the order data passes.

geometry     how large blocks and metadata may be
superblock   block 0 and its held copy: where every reader begins and every commit ends
mapping      one entry of a device's tree: data block and time
view         a pool's devices and their mappings, read-only
diff         what differs between two devices, by the nodes that their trees don't share
check        every reference count recomputed from the roots, findings in report
dump         thin_dump's XML
"""
