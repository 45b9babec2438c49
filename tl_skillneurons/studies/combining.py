"""How much of the skill do ``k`` neurons carry? A vote and a probe over the best, beside the prompt's own answers.

With ``rule_i(x) = +1 or -1`` what the rule of neuron ``i`` says (its position and direction chosen on ``select``, its
threshold on ``baseline``), and ``a_i(x)`` its activation at that position::

    vote_k(x)  = sign of  sum over i <= k of rule_i(x)            an even split goes to the best neuron
    probe_k(x) = sign of  w . a_1..k(x) + b                       logistic regression, fitted on ``select``

The neurons are ranked on ``select``; everything is measured on ``report``. The probe is TransformerLens'
(``fit_sparse_probe``). Beside both stand as many random neurons of the same layers, with positions and directions
chosen in the same way, so that what a crowd of any neurons can do is not taken for skill.

What it does not show: that the model reads the neurons. It shows what is in them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.neurons.controls import draw_controls
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.rules import chosen_activations
from tl_skillneurons.stats.hypothesis_tests import mcnemar
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.rates import rate_interval
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import right_answers, settings_of
from tl_skillneurons.tasks.subtasks import against_rest
from tl_skillneurons.tasks.task import Task

KIND = "VoteAndProbe"
_TENSORS = ("vote", "probe", "prompt")


@dataclass(frozen=True, eq=False)
class VoteAndProbe:
    """Which examples of ``report`` the best ``k`` neurons together get right, beside random ones and the prompt.

    Attributes:
        sizes: How many neurons: each ``k``.
        vote: Whether the vote is right; set 0 is the best neurons, the others are random.
        probe: The same of the probe.
        prompt: Whether the prompt's own answer is right.
        units: Which examples belong together; intervals and tests go by them.
        settings: Model, task, prompt, ``max_length``, role, seed, the unit and how many there are, the
            ``smallest_p`` that so many distinct random sets allow, and ``warnings`` of too few.

    Example:
        >>> curve = skn.studies.vote_and_probe(model, prompt, task, scores, [1, 4, 16])
        >>> curve.to_dataframe()[["k", "vote", "random_vote", "probe", "random_probe", "prompt"]]
    """

    sizes: tuple[int, ...]
    vote: Bool[Tensor, "size set example"]
    probe: Bool[Tensor, "size set example"]
    prompt: Bool[Tensor, " example"]
    units: Units
    settings: dict[str, Any]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per size: ``k``; ``vote`` and ``probe`` with 95 % intervals (``vote_low``, ...; exact where examples
        stand alone, otherwise bootstrapped by units), medians of the random sets (``random_vote``, ``random_probe``)
        and their upper ends (``random_vote_max``, ...); the p-value of McNemar's test by units of vote and probe
        against the prompt's own answers (``vote_p``, ``probe_p``), and the prompt's accuracy ``prompt``.
        """
        rows = []
        n = len(self.prompt)
        for number, size in enumerate(self.sizes):
            row: dict[str, Any] = {"k": size}
            for name in ("vote", "probe"):
                best, *others = getattr(self, name)[number]
                hits = int(best.sum())
                low, high = rate_interval(best.double(), self.units)
                random = [float(one.double().mean()) for one in others]
                row |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
                row |= {f"random_{name}": median(random), f"random_{name}_max": max(random)}
                row[f"{name}_p"] = mcnemar(self.prompt, best, units=self.units).p_value
            rows.append({**row, "prompt": float(self.prompt.double().mean())})
        return pd.DataFrame(rows).assign(
            role=self.settings["role"], n_examples=n, unit=self.units.what, n_units=len(self.units)
        )

    def __repr__(self) -> str:
        return one_line(
            self,
            sizes=self.sizes,
            n_random=self.vote.shape[1] - 1,
            n_examples=len(self.prompt),
            n_units=len(self.units),
            best_vote=float(self.vote[:, 0].double().mean(1).max()),
            best_probe=float(self.probe[:, 0].double().mean(1).max()),
            prompt=float(self.prompt.double().mean()),
            **({"warnings": self.settings["warnings"]} if self.settings.get("warnings") else {}),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one safetensors file, whole or not at all."""
        header = {"sizes": list(self.sizes), "settings": self.settings}
        tensors = {name: getattr(self, name) for name in _TENSORS} | {"units": self.units.member}
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "VoteAndProbe":
        """The result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            kept = {name: tensors[name] for name in _TENSORS}
            units = Units(tensors["units"], header["settings"]["unit"])
            return cls(tuple(header["sizes"]), **kept, units=units, settings=header["settings"])


def vote_and_probe(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    scores: NeuronScores,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    *,
    n_random: int = 5,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> VoteAndProbe:
    """Accuracy on ``report`` of the best ``k`` neurons of the model together, for each ``k`` of ``sizes``.

    Args:
        scores: Of this prompt alone, on this task; of more than two classes those of one of them, which is told from
            all others by the neurons, the probe and the prompt.
        n_random: Distinct random sets, of the layers of the best; all where there are fewer.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with. It must be what the scores
            were measured with.

    Raises:
        ValueError: When the scores are of another task, of another prompt or of several, or were measured on
            texts cut to another length; or when a size is more than there are neurons.

    Example:
        >>> one = skn.score_neurons(model, prompts[0], task)
        >>> skn.studies.vote_and_probe(model, prompts[0], task, one, [1, 4, 16]).to_dataframe()
    """
    require_seed(seed)
    if scores.provenance.get("prompts", [None]) != [prompt_record(prompt)]:
        raise ValueError("give the scores of this prompt alone: score_neurons(model, prompt, task)")
    require_measured_here(scores, model, prompt, task=task, max_length=max_length)
    for size in sizes:
        require_int(size, "sizes")
    if not len(sizes):
        raise ValueError("sizes must hold at least one number of neurons, got none")
    require_int(n_random, "n_random")
    best = scores.top(max(sizes), per="model")
    controls = draw_controls(best, n_random, seed=seed)
    sets = [best, *(_in_place_of(best, one) for one in controls.sets)]
    prompted = PromptedModel.for_task(model, prompt, task, max_length=max_length, run=run)
    require_sees_text(prompted, scores.positions)
    layer = torch.cat([one.layer for one in sets])
    index = torch.cat([one.index for one in sets])
    where, direction = scores.rules()
    position = where[0, layer, index]
    limits = scores.baseline[0, layer, position, index]
    acts, labels = {}, {}
    for role in ("select", "report"):
        texts = list(task.split(role)["text"])
        acts[role] = chosen_activations(prompted, texts, layer, position, index, positions=scores.positions)
        labels[role] = against_rest(torch.tensor(task.split(role)["label"]), scores.class_id)
    above = torch.where(acts["report"].double() > limits, 1, -1)
    said = direction[0, layer, index] * above
    votes, probes = [], []
    for size in sizes:
        parts = [slice(k * len(best), k * len(best) + size) for k in range(len(sets))]
        votes.append(torch.stack([majority(said[:, part]) == labels["report"] for part in parts]))
        probes.append(torch.stack([_probe(acts, labels, part, seed) == labels["report"] for part in parts]))
    units = task.units("report")
    settings = settings_of(
        model,
        task,
        [prompt],
        unit=units.what,
        n_units=len(units),
        positions=scores.positions,
        max_length=prompted.max_length,
        role="report",
        n_random=n_random,
        seed=seed,
        smallest_p=controls.smallest_p,
        warnings=controls.warnings,
    )
    own = right_answers(prompted, task, "report", class_id=scores.class_id)
    return VoteAndProbe(tuple(sizes), torch.stack(votes), torch.stack(probes), own, units, settings)


def _in_place_of(best: NeuronSet, control: NeuronSet) -> NeuronSet:
    """The same control, its neuron ``i`` of the layer of the set's neuron ``i``: the first ``k`` stand for the best."""
    index = torch.empty_like(best.index)
    for layer, own in control.by_layer().items():
        index[best.layer == layer] = own
    return NeuronSet(best.layer, index, control.n_layers, control.d_mlp, control.model)


def majority(said: Int[Tensor, "example neuron"]) -> Int[Tensor, " example"]:
    """The label that most neurons say (+1 for label 1, -1 for label 0); where they are even, the first one's."""
    total = said.sum(1)
    return (torch.where(total == 0, said[:, 0], total) > 0).long()


def _probe(
    acts: dict[str, Tensor], labels: dict[str, Tensor], chosen: slice, seed: int
) -> Int[Tensor, " example"]:
    """What a logistic regression on these columns, fitted on ``select``, says on ``report``."""
    features = acts["select"][:, chosen].float()
    fitted = fit_sparse_probe(
        features,
        labels["select"],
        k=features.shape[1],
        test_fraction=0.1,  # its own held-out part, which is not read here
        preprocess="standardize",
        seed=seed,
    )
    other = acts["report"][:, chosen].double()[:, fitted.selected_features]
    scaled = (other - fitted.preprocess_mean) / fitted.preprocess_scale
    return (scaled @ fitted.coefficients + fitted.intercept > 0).long()
