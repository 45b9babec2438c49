"""Soft prompts: the virtual tokens, where they stand, how they are tuned, and batches of text with them in place.

Only this room knows positions, masks and padding. It needs no scores: a prompt of your own will do.

======================= ===========================================================================
SoftPrompt              the virtual tokens; ``attached(model)`` makes them tokens of the model
PromptedModel           a model with a prompt and label words: batches of text in, class logits or answers out
Completions             the answers that ``PromptedModel.generate`` gives
fit_soft_prompts        tunes one prompt per seed, with ``TrainingOptions``
AdapterTraining         how a model's other weights learn a task, for ``studies.adapt``
RunOptions              how to run (batches, cache, progress), never what is measured
neuron_activations      every neuron's activation on texts, ``set_activations`` those of a set
answers_and_neurons     the model's answers, and every neuron where they are read, from one run
stream_activations      every layer's activations, batch by batch, reduced and gone with their batch
ActsAt                  a hook function that declares at which positions it acts
PromptedTokens          one batch of tokens, with what is prompt, text and padding
VirtualTokens           the virtual tokens of a prompt that is attached
======================= ===========================================================================
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
