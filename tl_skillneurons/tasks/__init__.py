"""Labelled text: where it comes from, which role each example has, and pairs of twins told apart by one word."""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
