"""Replicator's core; knows neither host nor process. The rooms in the order the data passes:

    nbd         the NBD wire protocol, both ends, without a socket (pure)
    blockdev    the door to the disk: file, block device, NBD client, memory, and a faulty one for tests
    pdata       persistent data: shadowed B-trees, space maps, transaction manager
    thin        thin provisioning on pdata, in the format of the kernel's dm-thin
    pool        a pool as its users see it: catalogue, cut, lease, reserve, commit
    exporter    the process that has a pool open: NBD listeners, control socket
    events      what travels: event values, their codec, chunk compression (pure)
    log         where it travels: one interface, the logs behind it
    history     what follows from events: lineage, plans, retention (pure)
    cli         the command line's frame

Below them all stand errors and units. Imports go downhill only: cli, exporter, pool | log, thin, pdata, blockdev,
events | history | nbd, errors | units.
"""
