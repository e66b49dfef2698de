"""The prompt that a person types at, and the terminal around it."""
