"""GGUF files: the header and the vocabulary, for any engine."""
