"""KV caches in files, read without trusting them."""
