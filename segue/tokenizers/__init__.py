"""Tokenizers and their chat templates, for any engine."""
