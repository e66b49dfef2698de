"""GGUF files as models of mlx-lm."""
