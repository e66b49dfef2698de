"""Grammars at work, for any engine: masks of tokens, and tokens that must come."""
