"""The KV caches of one conversation: they grow, rewind and are shared."""
