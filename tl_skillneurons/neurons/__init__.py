"""Which neurons: sets of them, what chose them, and the controls drawn for them.

A neuron is one coordinate of ``blocks.{layer}.mlp.hook_post``. :class:`NeuronSet` names some of a model;
:class:`Overlap` is what two sets share, beside what sets of their sizes share by luck.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
