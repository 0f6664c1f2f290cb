"""The NBD wire protocol, both ends, without a socket: pure functions and state machines over bytes.

In the order a connection lives:

    protocol     the numbers of the specification: magics, options, replies, flags, commands, errors; our limits
    failures     what can go wrong with a peer's bytes, and errno to NBD error and back
    uri          where a server is: nbd://, nbds://, nbd+unix://, nbds+unix://
    export       what a server offers under one name: size, flags, block sizes, metadata contexts
    options      the option and option-reply messages of the handshake, packed and unpacked
    handshake    what both handshakes tell their socket loop: Send, StartTls, Hangup
    server       ServerHandshake: from the greeting to an opened export
    client       ClientHandshake: the same from the other side
    request      requests: packing, parsing a whole receive buffer at once, validating
    reply        reply headers, simple and structured, for a server that packs them into an arena
    extents      runs of (length, flags) to a BLOCK_STATUS reply
    coverage     which bytes of a read have arrived, for the client's side of structured replies
    reply_stream the client's decoder of a server's replies
"""
