"""Soft prompts: the virtual tokens, where they stand, how they are tuned, and batches of text with them in place."""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
