"""From a conversation to the ids of a prompt."""
