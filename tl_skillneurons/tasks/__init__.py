"""Labelled text: where it comes from, which role each example has, and pairs of twins told apart by one word."""
