"""The conversation in the terminal: segue chat."""
