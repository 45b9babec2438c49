"""Chance, intervals and tests: numbers in, numbers out; nothing here knows a model."""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
