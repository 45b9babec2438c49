"""What the model does when neurons are held, moved or exchanged, beside the same done to controls."""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
