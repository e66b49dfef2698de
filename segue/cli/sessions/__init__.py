"""``segue sessions``: saved sessions on the command line."""
