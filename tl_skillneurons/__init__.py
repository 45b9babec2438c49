"""Find skill neurons of language models with TransformerLens, beside their chance level and controls.

Importing the package loads nothing else: a name comes from its module when it is first asked for.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
