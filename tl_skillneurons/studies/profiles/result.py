"""What is known of each of a few neurons, kept together: a table for each question, one row per neuron and answer.

:meth:`NeuronProfiles.of` gives one neuron's profile (:mod:`~tl_skillneurons.studies.profiles.one_neuron`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.neurons.choice import THESE, UNKNOWN
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.studies._common import columns_of, records, table_of
from tl_skillneurons.studies.profiles.one_neuron import NeuronProfile

KIND = "NeuronProfiles"
_TENSORS = ("activations", "baseline", "position", "labels")
_OPTIONAL = ("answers", "driving")
_TABLES = ("rules", "texts", "words", "output_words", "output_null", "effects", "heads")


@dataclass(frozen=True, eq=False)
class NeuronProfiles:
    """Profiles of chosen neurons on one role of a task; make them with :func:`profile_neurons`.

    Attributes:
        neurons: In the order of the axis ``neuron``.
        activations: Of each neuron on each example, at its position of each prompt.
        baseline: Its threshold there.
        position: The prompt position that ``select`` chose for it.
        labels: Class of each example.
        answers: The class that the model answers, or ``None`` where it can't be read out.
        rules: A row per neuron, as :func:`~tl_skillneurons.scores.evaluate_rules` gives it: ``layer``, ``index``,
            ``direction``, ``on_select`` (too good), ``accuracy``, ``low``, ``high``.
        texts: A row per neuron and text that drives it: ``layer``, ``index``, ``side`` ("highest" or "lowest", from
            the extreme one on), ``example``, ``text``, ``label``, ``answer`` (-1 where unknown), ``activation``; and
            where words were taken apart what the activation at the prompt (``measure`` in the settings) is made of:
            ``from_words``, ``from_special`` tokens, ``from_prompt`` positions, ``from_embedding``, ``from_mlps``,
            ``from_biases``, which sum to ``total``.
        words: A row per neuron, such text and token: ``layer``, ``index``, ``side``, ``example``, ``token`` (its name),
            ``kind`` ("text", "special" or "prompt"), ``start`` and ``end`` (its characters in ``text``, -1 for tokens
            that are not of it), ``moved`` (what attention carries from there to the neuron), ``activation`` (what the
            neuron itself does at that token); or ``None``.
        output_words: A row per neuron and word: ``layer``, ``index``, ``writes`` ("raises" or "lowers"), ``word`` (a
            token), ``score`` in standard deviations over the vocabulary, ``logit`` beside the mean of all words, per
            unit of activation (:mod:`~tl_skillneurons.studies.profiles.output_words`); or ``None``.
        output_null: Beside them a row per neuron: ``largest``, its highest score up or down; ``random_median`` and
            ``random_high`` (the 0.95 quantile) of ``n_random`` random neurons of its layer, and ``p``, how often these
            reach as high: 1 / (1 + n_random) at the least; or ``None``.
        effects: A row per neuron: ``direct`` and ``total`` change of the logit diff where it alone is held at its mean
            at the prompt, each with ``_low`` and ``_high``; negative where it helps the answer
            (:mod:`~tl_skillneurons.studies.profiles.single_effects`); or ``None``.
        driving: ``total`` of every neuron of the model, beside those that are profiled; NaN where a layer has no such
            neuron; or ``None``.
        heads: A row per neuron and head that writes the label into it, the strongest first: ``head_layer``, ``head``,
            ``difference`` between the labels, the same ``in_sd`` (in standard deviations of all that the neuron reads),
            ``p_family``; ``random_in_sd`` and ``random_p_family`` of the strongest head of a random neuron of its layer
            (:mod:`~tl_skillneurons.studies.profiles.writing_heads`, chosen on ``select``); or ``None``.
        left_out: The parts that were asked for and can't be had of this model, with the reason.
        settings: Model, task, prompts, role, which prompt is shown, what ``moved`` measures, where the neurons were
            chosen, unit of the intervals, seeds.

    Example:
        >>> profiles = skn.studies.profile_neurons(model, prompts, task, scores, scores.top(20, per="model"))
        >>> profiles.of(14, 371).highest[0].text
    """

    neurons: NeuronSet
    activations: Float[Tensor, "prompt example neuron"]
    baseline: Float[Tensor, "prompt neuron"]
    position: Int[Tensor, "prompt neuron"]
    labels: Int[Tensor, " example"]
    answers: Int[Tensor, "prompt example"] | None
    rules: pd.DataFrame
    texts: pd.DataFrame
    words: pd.DataFrame | None
    output_words: pd.DataFrame | None
    output_null: pd.DataFrame | None
    effects: pd.DataFrame | None
    driving: Float[Tensor, "layer neuron"] | None
    heads: pd.DataFrame | None
    left_out: Mapping[str, str]
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if self.activations.shape[2] != len(self.neurons) or len(self.rules) != len(self.neurons):
            raise ValueError(
                f"{len(self.neurons)} neurons need activations and a rule each, got {self.activations.shape[2]} and "
                f"{len(self.rules)}"
            )

    @property
    def shown(self) -> int:
        """The prompt under which texts drive the neurons here."""
        return int(self.settings["prompt"])

    @cached_property
    def correlations(self) -> Float[Tensor, "neuron neuron"]:
        """Pearson's r between the neurons' activations over the examples, with the shown prompt; NaN for a neuron that
        never changes."""
        acts = self.activations[self.shown].double()
        centred = acts - acts.mean(0)
        norm = centred.norm(dim=0)
        unit = centred / torch.where(norm > 1e-12 * acts.abs().amax(0), norm, torch.nan)
        return (unit.T @ unit).clamp(-1, 1)

    def of(self, layer: int, index: int) -> NeuronProfile:
        """One neuron's profile.

        Raises:
            KeyError: For a neuron that isn't profiled, with those that are.
        """
        if (layer, index) not in self._each:
            raise KeyError(
                f"neuron {layer}.{index} isn't profiled; these are: "
                f"{', '.join(f'{a}.{b}' for a, b in self._each)}"
            )
        return self._each[layer, index]

    @cached_property
    def _each(self) -> dict[tuple[int, int], NeuronProfile]:
        pairs = list(self.neurons)
        tables: dict[str, dict[Any, pd.DataFrame] | None] = {}
        for name in ("texts", "words", "output_words", "heads"):
            table = getattr(self, name)
            tables[name] = (
                None if table is None else dict(list(table.groupby(["layer", "index"], sort=False)))
            )

        def own(name: str, pair: tuple[int, int]) -> pd.DataFrame | None:
            found = tables[name]
            if found is None:
                return None
            return found[pair].reset_index(drop=True) if pair in found else getattr(self, name)[:0]

        def first(table: pd.DataFrame | None) -> list[dict[str, float]] | list[None]:
            return [None] * len(pairs) if table is None else records(table)

        rows = zip(first(self.rules), first(self.output_null), first(self.effects), strict=True)
        found = {}
        for number, (pair, (rule, null, effects)) in enumerate(zip(pairs, rows, strict=True)):
            texts = own("texts", pair)
            assert texts is not None and rule is not None  # for type checkers
            others = [
                (*other, float(r))
                for k, (other, r) in enumerate(zip(pairs, self.correlations[number], strict=True))
                if k != number
            ]
            found[pair] = NeuronProfile(
                layer=pair[0],
                index=pair[1],
                activations=self.activations[:, :, number],
                baseline=self.baseline[:, number],
                position=self.position[:, number],
                labels=self.labels,
                rule=rule,
                texts=texts,
                words=own("words", pair),
                output_words=own("output_words", pair),
                output_null=null,
                effects=effects,
                heads=own("heads", pair),
                correlated=tuple(
                    sorted((o for o in others if o[2] == o[2]), key=lambda other: -abs(other[2]))
                ),
            )
        return found

    def __iter__(self) -> Any:
        return (self.of(layer, index) for layer, index in self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: its rule, the text that drives it highest and lowest, and of the parts that were made the
        word it raises most, its effects, and the head that writes the label into it most; and where it was chosen
        (``neurons_chosen``: "on these examples", by insistence, "on other examples" or "unknown")."""
        frame = self.rules.assign(neurons_chosen=self.settings.get("neurons_chosen", UNKNOWN))
        at = ["layer", "index"]
        for side in ("highest", "lowest"):
            first = self.texts[self.texts.side == side].drop_duplicates(at)
            named = first[["layer", "index", "activation", "text"]].rename(
                columns={"activation": side, "text": f"{side}_text"}
            )
            frame = frame.merge(named, on=at, how="left")
        if self.output_words is not None and self.output_null is not None:
            top = self.output_words.drop_duplicates(at)[[*at, "word"]]
            frame = frame.merge(top, on=at).merge(self.output_null[[*at, "p"]], on=at)
            frame = frame.rename(columns={"p": "p_word"})
        if self.effects is not None:
            frame = frame.merge(self.effects, on=at)
        if self.heads is not None:
            strongest = self.heads.drop_duplicates(at)[[*at, "head_layer", "head", "p_family"]]
            frame = frame.merge(strongest.rename(columns={"p_family": "p_head"}), on=at)
        return frame

    def __repr__(self) -> str:
        n_prompts, n_examples, n_neurons = self.activations.shape
        numbers = {"n_neurons": n_neurons, "n_prompts": n_prompts, "n_examples": n_examples}
        here = self.settings.get("neurons_chosen") == THESE
        chosen = {"neurons_chosen": THESE} if here else {}
        return one_line(self, **numbers, role=self.settings["role"], left_out=sorted(self.left_out), **chosen)

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profiles to one safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        neurons = {name: getattr(self.neurons, name) for name in ("n_layers", "d_mlp", "model")}
        neurons["pairs"] = [list(pair) for pair in self.neurons]
        tables = {name: getattr(self, name) for name in _TABLES}
        header = {
            "neurons": neurons,
            "tables": {name: None if one is None else columns_of(one) for name, one in tables.items()},
            "left_out": dict(self.left_out),
            "settings": self.settings,
        }
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NeuronProfiles":
        """The profiles that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            told = dict(header["neurons"])
            pairs = [(layer, index) for layer, index in told.pop("pairs")]
            kept: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
            kept |= {name: tensors.get(name) for name in _OPTIONAL}
            for name in _TABLES:
                table = header["tables"][name]
                kept[name] = None if table is None else table_of(table)
            return cls(
                neurons=NeuronSet.from_pairs(pairs, **told),
                **kept,
                left_out=header["left_out"],
                settings=header["settings"],
            )
