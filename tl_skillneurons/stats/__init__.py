"""Chance, intervals and tests: numbers in, numbers out; nothing here knows a model."""
