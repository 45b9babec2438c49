"""Attention and skill neurons: who writes into a neuron, which heads bring the label there, and from which words.

====================== ==================================================================================
decompose              one batch: a pre-activation as a sum over embedding, heads by source, MLPs, biases
head_writers           over a task: which heads separate the labels at the neurons, with a permutation null
source_words           over a task: the tokens that heads move something from
coloured_sources       one text, shaded by what heads move from each token
====================== ==================================================================================
"""

from tl_skillneurons.pre_activations import PreActivationParts, decompose
from tl_skillneurons.writers import HeadWriters, coloured_sources, head_writers, source_words

__all__ = [
    "HeadWriters",
    "PreActivationParts",
    "coloured_sources",
    "decompose",
    "head_writers",
    "source_words",
]
