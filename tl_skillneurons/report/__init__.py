"""What a run found, as a reader meets it: :func:`show` prints it, from the numbers that :func:`numbers` decides on."""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
