"""The replica host: follows the log, applies each transaction, retires and verifies points.

Stands over replicator, and knows nothing of agent. In the order of the data's way:

    config         what a receiver is told
    access         the pool, connected again when its owner changed; disks: its two devices
    log_access     the log, opened when it is needed; one that was there before is waited for
    follow         one volume: read, judge, apply, say what is wrong; facts: what it knows
    registering    how far it is, said beside the log
    apply          events to switches: n, then n + 1; records: the rows that go with them; replica: the rows there are
    room, dev_ids  whether a transaction fits; free thin device numbers
    draft          one step: what each event does to blocks; blocks, runs: where they are; steps: cut to size
    retain         materialised points retire by the policy
    attest         a replica against what its source attested: drift
    verify         a point's chunks against the log; verification: which points, and what is remembered
    remember       what stands in the catalogue besides replicas
    status         facts to a verdict, a document, a text
    daemon         wires all of it; running, cli: from the command line
"""
