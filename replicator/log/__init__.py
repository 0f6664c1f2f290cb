"""Where events travel: one interface, and the object log behind it. In the order of the data's way:

interface    Log, StreamWriter, StreamReader, and the outcomes of an append
errors       what a log's reader may meet: a damaged segment, a gap, what was trimmed, a lost end
names        what each object is called
records      the small objects: marker, catalogue entry, start of what is kept, claim of a timeline
discovery    volumes by the catalogue, and by their streams where that is damaged
parts        a stream without its data: indexes, facts, single frames; from the events where a log has no footers
index        a segment's footer: chunk -> event, frame, page, mask, hash
segment      the file format of a run of events
objects      the seam to what holds objects: a directory, a bucket, a directory behind ssh
grammar      which names an object log uses
files        the seam to the operating system's files
directory    objects in a directory
s3           objects in a bucket: s3_url, s3_credentials, s3_errors beside it, spool where a segment waits, s3_opening
stdio        a directory's objects over two pipes: stdio_protocol (pure), _connection, _client, _server, _pipes
ssh          what reaches the far end: ssh_command (pure), ssh_reasons, ssh_channel, ssh_opening
stream       where a stream's segments are: the tail, the next one, gaps
writer       appends events, as segments
reader       reads and follows them, and a single chunk's pages out of one
object_log   all of it as a Log
schemes      who opens which kind of log
opening      the log that a URL names
pace         how often a log of each kind is written to
"""
