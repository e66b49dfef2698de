"""Saved sessions on the command line: segue sessions."""
