"""Prompt tuning: gradient descent on a few virtual tokens, the model frozen."""
