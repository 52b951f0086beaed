"""Foreign checkpoints: bounded readers of their headers and bytes, without policy."""
