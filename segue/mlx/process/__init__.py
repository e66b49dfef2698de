"""What MLX asks of the process that it runs in: its threads, its forks, and its end."""
