"""Grammars: what a reply may be."""
