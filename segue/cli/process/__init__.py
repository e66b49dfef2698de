"""The process around the command: its standard streams, and the signals that end it."""
