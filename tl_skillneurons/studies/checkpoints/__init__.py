"""The same discovery in several models or training checkpoints."""
