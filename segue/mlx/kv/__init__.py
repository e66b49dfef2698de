"""The KV caches of one conversation: they grow, go back and are shared."""
