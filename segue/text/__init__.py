"""Text of a reply, read piece by piece: pure state machines."""
