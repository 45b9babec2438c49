"""Soft prompts: the virtual tokens, where they stand, how they are tuned, and batches of text with them in place."""
