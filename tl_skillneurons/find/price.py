"""What does taking them away cost elsewhere? Perplexity of plain text with the skill neurons held, beside controls.

The skill neurons, and controls drawn as those of the effects are, are held at what they do at text positions on
examples of ``baseline``, under the first prompt, while the model reads plain sentences without a prompt
(:mod:`~tl_skillneurons.interventions.plain_text`)::

    perplexity = exp of the mean over sentences of their cross-entropy, in nats per token

What it does not show: what else is lost; a handful of short sentences is no benchmark of language modelling.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.find.plain_sentences import SENTENCES
from tl_skillneurons.interventions.ablation import ablate
from tl_skillneurons.interventions.controls import CONTROLS
from tl_skillneurons.interventions.plain_text import reading
from tl_skillneurons.interventions.references import measure_references
from tl_skillneurons.models.sites import is_causal
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import rank_p_value
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.tasks.task import Task

KIND = "Price"
N_REFERENCE = 64


@dataclass(frozen=True, eq=False, repr=False)
class Price:
    """What plain text costs while neurons are held.

    Attributes:
        intact: Cross-entropy of each sentence, in nats per token.
        held: The same with the skill neurons held.
        controls: The same for each draw of each kind of control.
        settings: Prompt, task, sentences, how many reference examples.

    Example:
        >>> found.price.to_dataframe()
    """

    intact: Float[Tensor, " sentence"]
    held: Float[Tensor, " sentence"]
    controls: dict[str, Float[Tensor, "draw sentence"]]
    settings: dict[str, Any]

    @property
    def outside(self) -> bool:
        """Whether the perplexity lies outside the range of all controls together, on either side."""
        drawn = [value for one in self.controls.values() for value in perplexities(one)]
        return not min(drawn) <= perplexities(self.held[None])[0] <= max(drawn)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for the skill neurons: perplexity ``intact`` and ``held``; of each control ``random_median``,
        ``random_min``, ``random_max``, the two-sided rank p ``p_random`` and the smallest that so many draws
        allow; ``outside`` the range of all controls."""
        intact, held = perplexities(torch.stack([self.intact, self.held]))
        row: dict[str, Any] = {"intact": intact, "held": held}
        for kind, losses in self.controls.items():
            drawn = perplexities(losses)
            row |= {f"{kind}_median": median(drawn), f"{kind}_min": min(drawn), f"{kind}_max": max(drawn)}
            row[f"p_{kind}"] = rank_p_value(held, drawn, "two-sided")
            row[f"smallest_p_{kind}"] = 1 / (len(drawn) + 1)
        return pd.DataFrame([{**row, "outside": self.outside, "n_sentences": len(self.intact)}])

    def __repr__(self) -> str:
        intact, held = perplexities(torch.stack([self.intact, self.held]))
        return one_line(self, intact=intact, held=held, outside=self.outside, n_sentences=len(self.intact))

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: Path) -> Path:
        """Write it to one safetensors file, whole or not at all."""
        tensors = {"intact": self.intact, "held": self.held, **self.controls}
        return save_tensors(path, KIND, tensors, {"settings": self.settings, "controls": list(self.controls)})

    @classmethod
    def load(cls, path: Path) -> "Price":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            controls = {kind: tensors[kind] for kind in header["controls"]}
            return cls(tensors["intact"], tensors["held"], controls, header["settings"])


def can_be_priced(model: TransformerBridge) -> bool:
    """Whether the model predicts plain text token by token; of encoders no price is measured."""
    return is_causal(model)


def perplexities(losses: Float[Tensor, "row sentence"]) -> list[float]:
    """Each row's perplexity.

    Example:
        >>> perplexities(torch.tensor([[math.log(4.0), math.log(16.0)]]))  # doctest: +ELLIPSIS
        [8.0...]
    """
    return [math.exp(value) for value in losses.double().mean(1).tolist()]


def measure_price(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    sets: Mapping[tuple[str, int], NeuronSet],
    run: RunOptions,
) -> Price:
    """The price of holding the skill neurons, and each of their controls.

    Args:
        sets: By kind ("chosen" or the control's) and draw.
    """
    prompted = PromptedModel.for_task(model, prompt, task, run=run)
    reference = measure_references(prompted, task, "baseline", N_REFERENCE, ["text"])["text"]
    plain = PromptedModel(model, None, run=run)
    found: dict[str, list[Tensor]] = {}
    bar = progress_bar("perplexity of plain text", len(sets) + 1, show=run.progress)
    with bar as advance, reading(plain, SENTENCES) as losses:
        intact = losses([])
        advance()
        for (kind, _), held in sets.items():
            hooks = ablate(held, how="mean", values=reference, positions="text")
            found.setdefault(kind, []).append(losses(hooks))
            advance()
    settings = {
        "prompts": [prompt_record(prompt)],
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "n_reference": len(reference.labels),
        "sentences": list(SENTENCES),
    }
    controls = {kind: torch.stack(found[kind]) for kind in CONTROLS if kind in found}
    return Price(intact, found["chosen"][0], controls, settings)
