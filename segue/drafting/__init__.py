"""Drafts for any engine: prompt lookup, and whether drafting pays."""
