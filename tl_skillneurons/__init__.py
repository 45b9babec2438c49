"""Find skill neurons of language models with TransformerLens, beside their chance level and controls."""

from tl_skillneurons.ablation import ablate
from tl_skillneurons.effects import AblationEffect, ablation_effect, accuracy
from tl_skillneurons.loading import load_model
from tl_skillneurons.minimal_pairs import minimal_pairs
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.packaged import packaged_model
from tl_skillneurons.positions import PromptedTokens
from tl_skillneurons.prompted import PromptedModel
from tl_skillneurons.scores import NeuronScores
from tl_skillneurons.scoring import neuron_activations, rule_accuracy, score_neurons
from tl_skillneurons.soft_prompt import SoftPrompt
from tl_skillneurons.statistics import ChanceLevel, best_of_chance
from tl_skillneurons.task import Task
from tl_skillneurons.tuning import fit_soft_prompts

__all__ = [
    "AblationEffect",
    "ChanceLevel",
    "NeuronScores",
    "NeuronSet",
    "PromptedModel",
    "PromptedTokens",
    "SoftPrompt",
    "Task",
    "ablate",
    "ablation_effect",
    "accuracy",
    "best_of_chance",
    "fit_soft_prompts",
    "load_model",
    "minimal_pairs",
    "neuron_activations",
    "packaged_model",
    "rule_accuracy",
    "score_neurons",
]
