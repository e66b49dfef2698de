"""Drafts at work on MLX."""
