"""Neurons turned up and down while a model writes: what it does to what is written, what it costs, beside controls."""
