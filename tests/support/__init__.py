"""What the tests stand on.

debian, fetch_judges   other people's programs, fetched
judges, servers        those programs, asked and started
kernel, guest          a real kernel: from outside, and within
thin_sessions          random sessions on thin pools and their model, for any engine; thin_hands: for ours
kernel_turns           a pool that our engine and the kernel work on in turns
lvm, flaky_power       LVM and a lying disk, in the guest
serve_process          `replicator serve` as a process of its own
libnbd_programs        libnbd's C programs, built
golden                 golden data, unpacked
leftovers              what a test left running
house                  the house rules
suite                  the walk through the test folders, with budgets
"""
