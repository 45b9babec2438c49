"""Find skill neurons of language models with TransformerLens, beside their chance level and controls.

Importing the package loads nothing else: a name comes from its module when it is first asked for (PEP 562).
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

__all__ = [
    "AblationEffect",
    "AccuracyWithoutWords",
    "AdaptedModel",
    "Calibration",
    "ChanceLevel",
    "CheckpointComparison",
    "Diagnosis",
    "EffectPanel",
    "InputCache",
    "LabelWordComparison",
    "NeuronAttribution",
    "NeuronPatching",
    "NeuronScores",
    "NeuronSet",
    "NeuronStatistic",
    "Overlap",
    "PermutationNull",
    "PromptDescription",
    "PromptTrajectory",
    "PromptTransfer",
    "PromptedModel",
    "PromptedTokens",
    "ReadingComparison",
    "RuleOutcomes",
    "ScoreComparison",
    "SelectedAccuracy",
    "SoftPrompt",
    "Task",
    "TaskComparison",
    "TaskDamage",
    "ablate",
    "ablation_effect",
    "accuracy",
    "accuracy_without_words",
    "adapt",
    "answer_targets",
    "attribute_neurons",
    "best_of_chance",
    "check_calibration",
    "combine_neurons",
    "compare_label_words",
    "compare_readings",
    "compare_scores",
    "compare_sets",
    "compare_tasks",
    "compare_with_exact",
    "correlate_neurons",
    "describe_prompt",
    "diagnose",
    "export_pruned",
    "fit_soft_prompts",
    "load_model",
    "load_pruned",
    "measure_adapted",
    "measure_damage",
    "measure_effects",
    "measure_scores",
    "minimal_pairs",
    "neuron_activations",
    "over_checkpoints",
    "packaged_model",
    "patch_neurons",
    "plot_scores",
    "prompt_trajectory",
    "prune",
    "rule_accuracy",
    "save_pruned",
    "score_classes",
    "score_gradients",
    "score_neurons",
    "selected_accuracy",
    "shuffle_layers",
    "top_union",
    "transfer_prompts",
    "weight_words",
    "word_selectivity",
]

_MODULES = {
    "AblationEffect": "interventions.effects",
    "AccuracyWithoutWords": "studies.words.without_words",
    "AdaptedModel": "studies.adaptation",
    "Calibration": "scores.calibration",
    "ChanceLevel": "stats.chance",
    "CheckpointComparison": "studies.checkpoints.comparison",
    "Diagnosis": "studies.diagnosis",
    "EffectPanel": "interventions.effect_panel",
    "InputCache": "models.input_cache",
    "LabelWordComparison": "studies.words.label_words",
    "NeuronAttribution": "interventions.attribution",
    "NeuronPatching": "interventions.patching",
    "NeuronScores": "scores.neuron_scores",
    "NeuronSet": "neurons",
    "NeuronStatistic": "scores.neuron_statistic",
    "Overlap": "scores.overlap",
    "PermutationNull": "scores.null",
    "PromptDescription": "studies.prompt_description",
    "PromptTrajectory": "studies.trajectory",
    "PromptTransfer": "studies.across_tasks.transfer",
    "PromptedModel": "prompts.prompted_model",
    "PromptedTokens": "prompts.positions",
    "ReadingComparison": "studies.readings",
    "RuleOutcomes": "scores.outcomes",
    "ScoreComparison": "studies.score_comparison",
    "SelectedAccuracy": "scores.rules",
    "SoftPrompt": "prompts.soft_prompt",
    "Task": "tasks.task",
    "TaskComparison": "studies.across_tasks.similarity",
    "TaskDamage": "studies.across_tasks.damage",
    "ablate": "interventions.ablation",
    "ablation_effect": "interventions.effects",
    "accuracy": "interventions.effects",
    "accuracy_without_words": "studies.words.without_words",
    "adapt": "studies.adaptation",
    "answer_targets": "scores.other_scores",
    "attribute_neurons": "interventions.attribution",
    "best_of_chance": "stats.chance",
    "check_calibration": "scores.calibration",
    "combine_neurons": "studies.combining",
    "compare_label_words": "studies.words.label_words",
    "compare_readings": "studies.readings",
    "compare_scores": "studies.score_comparison",
    "compare_sets": "scores.overlap",
    "compare_tasks": "studies.across_tasks.similarity",
    "compare_with_exact": "interventions.attribution",
    "correlate_neurons": "scores.other_scores",
    "describe_prompt": "studies.prompt_description",
    "diagnose": "studies.diagnosis",
    "export_pruned": "models.pruned_files",
    "fit_soft_prompts": "prompts.tuning.fit",
    "load_model": "models.loading",
    "load_pruned": "models.pruned_files",
    "measure_adapted": "studies.adaptation",
    "measure_damage": "studies.across_tasks.damage",
    "measure_effects": "interventions.measure_effects",
    "measure_scores": "scores.other_scores",
    "minimal_pairs": "tasks.minimal_pairs",
    "neuron_activations": "prompts.activations",
    "over_checkpoints": "studies.checkpoints.run",
    "packaged_model": "models.packaged",
    "patch_neurons": "interventions.patching",
    "plot_scores": "plots",
    "prompt_trajectory": "studies.trajectory",
    "prune": "models.pruning",
    "rule_accuracy": "scores.predictivity",
    "save_pruned": "models.pruned_files",
    "score_classes": "scores.predictivity",
    "score_gradients": "scores.gradients",
    "score_neurons": "scores.predictivity",
    "selected_accuracy": "scores.rules",
    "shuffle_layers": "studies.checkpoints.run",
    "top_union": "scores.neuron_scores",
    "transfer_prompts": "studies.across_tasks.transfer",
    "weight_words": "studies.words.selectivity",
    "word_selectivity": "studies.words.selectivity",
}
"""The module that each exported name comes from."""

if TYPE_CHECKING:  # the same for type checkers and editors, which would take any name from a __getattr__
    from tl_skillneurons.interventions.ablation import ablate
    from tl_skillneurons.studies.adaptation import AdaptedModel, adapt, measure_adapted
    from tl_skillneurons.interventions.attribution import NeuronAttribution, attribute_neurons, compare_with_exact
    from tl_skillneurons.scores.calibration import Calibration, check_calibration
    from tl_skillneurons.studies.checkpoints.comparison import CheckpointComparison
    from tl_skillneurons.studies.checkpoints.run import over_checkpoints, shuffle_layers
    from tl_skillneurons.studies.combining import combine_neurons
    from tl_skillneurons.studies.diagnosis import Diagnosis, diagnose
    from tl_skillneurons.interventions.effects import AblationEffect, ablation_effect, accuracy
    from tl_skillneurons.scores.gradients import score_gradients
    from tl_skillneurons.models.input_cache import InputCache
    from tl_skillneurons.prompts.activations import neuron_activations
    from tl_skillneurons.studies.words.label_words import LabelWordComparison, compare_label_words
    from tl_skillneurons.models.loading import load_model
    from tl_skillneurons.interventions.measure_effects import measure_effects
    from tl_skillneurons.neurons import NeuronSet
    from tl_skillneurons.scores.other_scores import answer_targets, correlate_neurons, measure_scores
    from tl_skillneurons.scores.outcomes import RuleOutcomes
    from tl_skillneurons.scores.overlap import Overlap, compare_sets
    from tl_skillneurons.models.packaged import packaged_model
    from tl_skillneurons.tasks.minimal_pairs import minimal_pairs
    from tl_skillneurons.interventions.effect_panel import EffectPanel
    from tl_skillneurons.interventions.patching import NeuronPatching, patch_neurons
    from tl_skillneurons.scores.null import PermutationNull
    from tl_skillneurons.plots import plot_scores
    from tl_skillneurons.prompts.positions import PromptedTokens
    from tl_skillneurons.studies.prompt_description import PromptDescription, describe_prompt
    from tl_skillneurons.prompts.prompted_model import PromptedModel
    from tl_skillneurons.models.pruned_files import export_pruned, load_pruned, save_pruned
    from tl_skillneurons.models.pruning import prune
    from tl_skillneurons.studies.readings import ReadingComparison, compare_readings
    from tl_skillneurons.studies.score_comparison import ScoreComparison, compare_scores
    from tl_skillneurons.scores.neuron_scores import NeuronScores, top_union
    from tl_skillneurons.scores.predictivity import rule_accuracy, score_classes, score_neurons
    from tl_skillneurons.scores.rules import SelectedAccuracy, selected_accuracy
    from tl_skillneurons.prompts.soft_prompt import SoftPrompt
    from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
    from tl_skillneurons.stats.chance import ChanceLevel, best_of_chance
    from tl_skillneurons.studies.words.without_words import AccuracyWithoutWords, accuracy_without_words
    from tl_skillneurons.tasks.task import Task
    from tl_skillneurons.studies.across_tasks.damage import TaskDamage, measure_damage
    from tl_skillneurons.studies.across_tasks.similarity import TaskComparison, compare_tasks
    from tl_skillneurons.studies.trajectory import PromptTrajectory, prompt_trajectory
    from tl_skillneurons.studies.across_tasks.transfer import PromptTransfer, transfer_prompts
    from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
    from tl_skillneurons.studies.words.selectivity import weight_words, word_selectivity

else:

    def __getattr__(name: str) -> Any:
        submodules = [module.name for module in iter_modules(__path__)]
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        elif name in submodules:
            value = import_module(f"{__name__}.{name}")
        else:
            from tl_skillneurons._checks import near

            hint = near(name, [*__all__, *(module for module in submodules if module[0] != "_")])
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
