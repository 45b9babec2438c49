"""Attention and skill neurons: who writes into a neuron, which heads bring the label there, from which words, and
whether the heads matter.

====================== ==================================================================================
decompose              one batch: a pre-activation as a sum over embedding, heads by source, MLPs, biases
head_writers           over a task: which heads separate the labels at the neurons, with a permutation null
source_words           over a task: the tokens that heads move something from
coloured_sources       one text, shaded by what heads move from each token
attention_over_task    what the prompt positions attend to and who attends to them, per layer and head
example_pattern        one text's tokens and patterns, as CircuitsVis takes them
ablate_heads           hooks that hold heads' outputs at 0 or at their mean (``mean_head_outputs``)
patch_heads_to_neurons what heads carry from a twin straight into neurons, and what the answer makes of it
head_effects           what ablating heads does to neurons and answers, beside random heads of the same layers
====================== ==================================================================================
"""

from tl_skillneurons.attention.patterns import PromptAttention, attention_over_task, example_pattern
from tl_skillneurons.attention.heads import (
    HeadEffects,
    ablate_heads,
    head_effects,
    mean_head_outputs,
    random_heads_like,
)
from tl_skillneurons.attention.path_patching import PathPatching, patch_heads_to_neurons
from tl_skillneurons.attention.decomposition import PreActivationParts, decompose
from tl_skillneurons.attention.head_writers import HeadWriters, coloured_sources, head_writers, source_words

__all__ = [
    "HeadEffects",
    "HeadWriters",
    "PathPatching",
    "PreActivationParts",
    "PromptAttention",
    "ablate_heads",
    "attention_over_task",
    "coloured_sources",
    "decompose",
    "example_pattern",
    "head_effects",
    "head_writers",
    "mean_head_outputs",
    "patch_heads_to_neurons",
    "random_heads_like",
    "source_words",
]
