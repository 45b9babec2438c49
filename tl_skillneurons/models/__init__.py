"""A TransformerBridge: loading it, where its neurons are, its tokenizer, its batches, and what is kept of its texts.

Only this room and ``prompts`` know what is peculiar to the bridge; everything above knows hook names and ``cfg``.

=================== ============================================================================"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
