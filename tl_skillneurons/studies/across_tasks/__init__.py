"""Several tasks: similar neurons, damage to others, prompts that transfer."""
