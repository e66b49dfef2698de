"""Speculative decoding: drafters propose tokens, and the model verifies several in one pass."""
