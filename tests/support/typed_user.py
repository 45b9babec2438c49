"""What a user's script looks like to a type checker: names have types, and wrong uses are seen.

It is checked, never run. A line with a wrong use carries the error that it must give; a checker that saw nothing there
(a name without a type) would call the comment unused.
"""

from pathlib import Path
from typing import assert_type

import pandas as pd
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import tl_skillneurons as skn
from tl_skillneurons.interventions import Keep, Mean, Noise
from tl_skillneurons.scores import AllRules, RuleAccuracy


def study(model: TransformerBridge, task: skn.Task, folder: Path) -> pd.DataFrame:
    run = skn.RunOptions(batch_tokens=4096, progress=False)
    prompts = skn.fit_soft_prompts(model, task, n_virtual_tokens=8, seeds=range(2), run=run)
    assert_type(prompts, list[skn.SoftPrompt])
    scores = skn.score_neurons(model, prompts, task, n_permutations=1000, run=run)
    assert_type(scores, skn.NeuronScores)
    skill = scores.top(0.02)
    assert_type(skill, skn.NeuronSet)
    assert_type(skn.scores.evaluate_rules(model, prompts, task, scores, skill), RuleAccuracy)
    assert_type(skn.scores.evaluate_rules(model, prompts, task, scores), AllRules)

    prompted = skn.PromptedModel(model, prompts[0], task.label_words, run=run)
    hooks = skn.ablate(skill, how="mean", values=scores.mean_baseline())
    assert_type(prompted.class_logits(["A delight."], fwd_hooks=hooks), Tensor)
    assert_type(prompted.accuracy(task, "report"), float)

    panel = skn.measure_effects(model, prompts, task, skill, interventions=["mean", Noise(0.5), Keep(Mean())])
    panel.save(folder / "effects.safetensors")
    assert_type(skn.EffectPanel.load(folder / "effects.safetensors"), skn.EffectPanel)
    found = skn.find_skill_neurons(model, task, out=folder)
    assert_type(found, skn.Findings)
    assert_type(found.effects.to_dataframe(), pd.DataFrame)
    return panel.to_dataframe()


def mistakes(model: TransformerBridge, task: skn.Task, scores: skn.NeuronScores) -> None:
    skn.fit_soft_prompts("gpt2", task)  # type: ignore[arg-type]  # a name is no model
    skn.score_neurons(model, None, task, progress=False)  # type: ignore[call-arg]  # run=RunOptions(progress=False)
    scores.best  # type: ignore[attr-defined]  # noqa: B018
    skn.score_neuron  # type: ignore[attr-defined]  # noqa: B018
    skn.scores.rule_accuracy  # type: ignore[attr-defined]  # noqa: B018
    skn.RunOptions(batch_tokens="many")  # type: ignore[arg-type]
