"""Questions asked of whole discoveries: is it stable, what else explains it, does it carry over?"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
