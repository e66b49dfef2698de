"""One turn, from messages to the write-back: no files, no engines."""
