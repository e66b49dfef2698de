"""Drafts for any engine: prompt lookup, and a measure of whether drafting pays."""
