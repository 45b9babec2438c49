"""Attention and skill neurons: who writes into a neuron, which heads bring the label there, from which words, and
whether the heads matter.

====================== ==================================================================================
decompose              one batch: a pre-activation as a sum over embedding, heads by source, MLPs, biases
head_writers           over a task: which heads separate the labels at the neurons, with a permutation null
source_words           over a task: the tokens that heads move something from
coloured_sources       one text, shaded by what heads move from each token
attention_over_task    what the prompt positions attend to and who attends to them, per layer and head
example_pattern        one text's tokens and patterns, as CircuitsVis takes them
ablate_heads           hooks that do to heads' outputs what ``ablate`` does to neurons
random_heads_like      other heads of the same layers, as a control
mean_head_outputs      heads' outputs over reference texts: their mean, and (``head_outputs``) all of them
head_effects           what ablating heads does to neurons and answers, beside random and matched heads
patch_heads_to_neurons what heads carry from a twin straight into neurons, and what the answer makes of it
====================== ==================================================================================

Results: ``PreActivationParts`` ``HeadWriters`` (and its ``ChosenHeads``) ``SourceWords`` ``PromptAttention``
``HeadOutputs`` ``HeadEffects`` ``PathPatching``.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
