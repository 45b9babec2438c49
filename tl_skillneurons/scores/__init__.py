"""How well each neuron tells labels apart: scores, what luck gives, and which neurons are chosen."""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
