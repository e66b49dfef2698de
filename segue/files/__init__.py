"""Files that are replaced whole, locked, and read without trusting them."""
