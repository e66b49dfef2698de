"""Sessions and prompt caches that outlive a process."""
