"""Grammars: what a reply may be, and the masks that hold a model to it."""
