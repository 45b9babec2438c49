"""Exchange neurons between twin inputs: does a set carry the label from one run into the other?

Twins have equally many tokens and different labels. The *base* run takes the *source* run's values of the
chosen neurons at the chosen positions (an interchange intervention: Geiger et al., 2021; TransformerLens'
``SubspaceInterchange`` on the neurons' coordinates). With ``d`` the logit diff of a run, logit of the clean
twin's label minus the other's (of more than two classes the highest other's)::

    recovered = mean of (d_patched - d_base) / mean of (d_source - d_base)

0 means that nothing moved, 1 that the base now answers as the source. *Denoising* puts clean into corrupted
(is the set enough?), *noising* corrupted into clean (is it needed?); they can differ (Heimersheim and Nanda,
2024).

Beside the set stand as many random neurons of the same layers, and a placebo: the same random neurons moved
as far as the set was (TransformerLens' ``NormMatchedPlacebo``). No control of a set, or of a part of it, is
drawn twice. What it does not show: neurons that act together can each recover nothing alone; more than one set
can recover all.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import PatchingResult

from tl_skillneurons._checks import require_option, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.interventions._exchange import PLACES, conditions_of, patched
from tl_skillneurons.interventions._measured import units_record, units_said, units_told
from tl_skillneurons.interventions.ablation import Positions, positions_record
from tl_skillneurons.interventions.each_class import clean_labels_of, pairs_of_each_class
from tl_skillneurons.interventions.twins import (
    DIRECTIONS,
    Twins,
    no_fraction,
    twins_of,
    twins_record,
)
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.choice import THESE, UNKNOWN
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import rank_p_value, require_draws, sign_flip_test
from tl_skillneurons.stats.intervals import ratio_interval
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.task import Task

KIND = "NeuronPatching"
CURVES = ("layer", "cumulative", "neuron")


@dataclass(frozen=True, eq=False, repr=False)
class NeuronPatching:
    """What exchanging neurons between twins does to the logit diff.

    Attributes:
        results: By direction a TransformerLens ``PatchingResult``: the logit diff of each patched run,
            ``[condition, pair]``, over the base's as its baseline, with its intervals and tests.
        source: By direction the logit diff of the source run, ``[pair]``.
        settings: Model, prompt, task, neurons, site, positions and their frame, twins, the units of their pairs, how
            many texts were cut, seed.

    Example:
        >>> found = skn.patch_neurons(model, prompt, task, skill)
        >>> found.recovered("denoise")[0]  # what the whole set recovers
    """

    results: dict[str, PatchingResult]
    source: dict[str, Float[Tensor, " pair"]]
    settings: dict[str, Any]

    def recovered(self, direction: str = "denoise") -> Float[Tensor, " condition"]:
        """The fraction of the logit diff that each condition recovers, in the order of ``index_df``.

        Raises:
            ValueError: When the gap between clean and corrupted runs is zero, or its interval over units holds zero.
        """
        gap = self._gap(direction)
        if doubt := no_fraction(gap, self.units):
            raise ValueError(
                f"{doubt}; does the prompt tell the classes apart? (to_dataframe() has the change in logits, the runs "
                "themselves are in results and source)"
            )
        return self._change(direction) / float(gap.mean())

    def _change(self, direction: str) -> Float[Tensor, " condition"]:
        change: Tensor = self.results[direction].effect().mean(-1)
        return change

    def _gap(self, direction: str) -> Float[Tensor, " pair"]:
        return self.source[direction] - _baseline(self.results[direction])

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per direction and set: the whole one, and the points of the curves.

        Columns: ``direction``, ``curve`` ("whole", "layer", "cumulative", "neuron"), ``layer`` and ``index``
        where the set has one, ``n_neurons``; ``change`` of the mean logit diff, in logits, with its sign-flip p
        (``p_zero``); ``recovered``, that change as a fraction of the gap, with its bootstrap interval over units
        (``low``, ``high``: of the ratio, change and gap of the same drawn units); of the random neurons
        and of the placebo median, range and rank p of recovering as much (``random_...``, ``placebo_...``;
        single neurons, of the curve "neuron", share single random neurons of their layer and have no placebo: NaN),
        beside ``smallest_p_random`` and ``smallest_p_placebo``, what so many distinct draws allow; :attr:`notes` says
        where these are too few, and is in ``attrs``.

        Signs are flipped and pairs resampled by units (``unit``, ``n_units``); ``n_pairs`` twins, of whose texts
        ``n_cut`` lost their end; ``neurons_chosen`` "on other examples", "on these examples" (by insistence) or
        "unknown".

        Where the gap is zero, or its interval over units holds zero, there is no fraction of it: ``recovered``, its
        interval and the controls' columns are NaN, and a warning says why.
        """
        require_seed(seed)
        rows, units = [], self.units
        for direction, result in self.results.items():
            frame = result.index_df
            change, gap = self._change(direction), self._gap(direction)
            share = low = high = torch.full_like(change, torch.nan)
            doubt = no_fraction(gap, units, confidence=confidence, seed=seed)
            if doubt:
                warnings.warn(f"{direction}: {doubt}; recovered is NaN, read change, in logits", stacklevel=2)
            else:
                share = change / float(gap.mean())
                low, high = ratio_interval(
                    result.effect(), gap, confidence=confidence, seed=seed, units=units
                )
            p_zero = sign_flip_test(result.effect(), units=units, seed=seed)
            chosen = frame[frame.kind == "chosen"]
            for number, (_, row) in zip(chosen.index.tolist(), chosen.iterrows(), strict=True):
                own = {"direction": direction, **row.drop(["kind", "draw"]).to_dict()}
                own |= {"change": float(change[number])}
                own |= {"recovered": float(share[number]), "low": float(low[number])}
                own |= {"high": float(high[number]), "p_zero": float(p_zero[number])}
                for kind in ("random", "placebo"):
                    of_kind = frame[(frame.kind == kind) & (frame.curve == row.curve)]
                    shared = "layer" if row.curve == "neuron" else "point"
                    of_kind = of_kind[of_kind[shared] == row[shared]]
                    drawn = share[of_kind.index.tolist()]
                    if not len(drawn):
                        continue
                    own |= {f"{kind}_median": median(drawn), f"{kind}_min": float(drawn.min())}
                    own[f"{kind}_max"] = float(drawn.max())
                    rank = torch.nan if doubt else rank_p_value(float(share[number]), drawn, "greater")
                    own |= {f"p_{kind}": rank, f"smallest_p_{kind}": 1 / (len(drawn) + 1)}
                rows.append(own)
        told = {"unit": units.what, "n_units": len(units), "n_cut": self.settings.get("n_cut")}
        told["neurons_chosen"] = self.settings.get("neurons_chosen", UNKNOWN)
        table = pd.DataFrame(rows).assign(n_pairs=self.n_pairs, **told)
        table.attrs["notes"] = list(self.notes)
        return table

    def each_class(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """The same between the twins whose clean text is of each ``class`` alone, and beside it the change between all
        other twins (``rest_change``, ``rest_recovered``, ``rest_p_zero``): of several classes one may give all of it.

        Example:
            >>> found.each_class()[["direction", "curve", "class", "change", "p_zero", "rest_change", "rest_p_zero"]]
        """
        how: dict[str, Any] = {"confidence": confidence, "seed": require_seed(seed)}
        beside = ("change", "recovered", "p_zero")
        labels = clean_labels_of(self.settings)
        return pairs_of_each_class(labels, lambda here: self._of_pairs(here).to_dataframe(**how), beside)

    def _of_pairs(self, here: Bool[Tensor, " pair"]) -> "NeuronPatching":
        """The same of some of the pairs."""
        results = {
            direction: _result(result.values[:, here], _baseline(result)[here], result.index_df)
            for direction, result in self.results.items()
        }
        units = units_record(self.units.take(here.nonzero().flatten()))
        source = {direction: found[here] for direction, found in self.source.items()}
        return NeuronPatching(results, source, {**self.settings, "units": units})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the p-values must know, in words: which sets have too few distinct controls."""
        return tuple(self.settings.get("notes", ()))

    @property
    def units(self) -> Units:
        """Which pairs belong together."""
        return units_told(self.settings.get("units"), self.n_pairs)

    @property
    def n_pairs(self) -> int:
        """How many pairs of twins."""
        return len(next(iter(self.source.values())))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as safetensors, whole or not at all; returns its path."""
        tensors = {}
        for direction, result in self.results.items():
            tensors[f"{direction}, values"] = result.values
            tensors[f"{direction}, baseline"] = _baseline(result)
            tensors[f"{direction}, source"] = self.source[direction]
        frame = next(iter(self.results.values())).index_df.astype(object)
        index = frame.where(frame.notna(), None).to_dict("records")
        header = {"settings": self.settings, "directions": list(self.results), "index": index}
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NeuronPatching":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            index = pd.DataFrame(header["index"]).astype(dict.fromkeys(PLACES, float))
            results, source = {}, {}
            for direction in header["directions"]:
                values, baseline = (tensors[f"{direction}, {what}"] for what in ("values", "baseline"))
                source[direction] = tensors[f"{direction}, source"]
                if values.shape != (len(index), len(baseline)) or len(source[direction]) != len(baseline):
                    raise ValueError(f"the numbers of direction {direction!r} differ in their shapes")
                results[direction] = _result(values, baseline, index)
            return cls(results, source, header["settings"])

    def __repr__(self) -> str:
        settings = self.settings
        shares = {
            direction: None
            if no_fraction(self._gap(direction), self.units)
            else round(float(self.recovered(direction)[0]), 3)
            for direction in self.results
        }
        return one_line(
            self,
            task=settings.get("task", {}).get("name"),
            recovered=shares,
            n_pairs=self.n_pairs,
            units=units_said(self.units),
            **({"neurons_chosen": THESE} if settings.get("neurons_chosen") == THESE else {}),
            n_neurons=len(settings.get("neurons", [])),
            positions=settings.get("positions"),
            n_random=settings.get("n_random"),
            **({"notes": self.notes} if self.notes else {}),
        )

    def _repr_html_(self) -> str:
        return html_of(self)


def patch_neurons(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    neurons: Neurons,
    *,
    twins: Twins | str = "report",
    directions: Sequence[str] = DIRECTIONS,
    positions: Positions = "prompt",
    curves: Sequence[str] = ("layer", "cumulative"),
    n_random: int = 20,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> NeuronPatching:
    """Exchange ``neurons`` between twins, beside ``n_random`` draws of each control.

    Args:
        task: Gives the label words, and the twins where it has them (:func:`~tl_skillneurons.minimal_pairs`).
        twins: The role of the task whose twins are taken, or other pairs of equal token length, ``Twins(...)``. Not
            those that chose the neurons, unless ``Twins.of(task, role, on_chosen_examples=True)`` insists.
        directions: Of "denoise" (clean into corrupted) and "noise" (corrupted into clean).
        positions: As in :func:`~tl_skillneurons.ablate`; the set's values are exchanged there alone.
        n_random: Distinct draws of each control, or all that there are.
        curves: "layer": the set's neurons of each layer; "cumulative": its first 1, 2, 4, ... neurons in the
            set's order; "neuron": each alone, beside ``n_random`` other neurons of its layer, each alone.
        max_length: Longest sequence in tokens; ``None`` for what the prompt was tuned with.

    Raises:
        ValueError: For pairs of unequal length or that cutting makes the same, neurons of another model or that these
            twins chose, or fewer draws than a p-value of 0.05 needs.

    Example:
        >>> found = skn.patch_neurons(model, prompt, task, skill, curves=("layer",))
        >>> found.to_dataframe()[["direction", "curve", "layer", "recovered", "random_max", "placebo_max"]]
    """
    neurons = as_neurons(neurons)
    shape = neuron_shape(model)
    neurons.require_fits(*shape)
    neurons = NeuronSet(neurons.layer, neurons.index, *shape, neurons.model, neurons.choice)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    require_draws(n_random)
    require_seed(seed)
    for one in directions:
        require_option(one, "directions", DIRECTIONS)
    for one in curves:
        require_option(one, "curves", CURVES)
    prompted = PromptedModel.for_task(model, prompt, task, max_length=max_length, run=run)
    pairs = twins_of(task, twins)
    where_chosen = pairs.where_chosen(neurons)
    index, conditions, notes = conditions_of(neurons, curves, n_random, seed)
    require(model, "neurons")
    names = {layer: neuron_hooks(model)[layer] for layer in neurons.by_layer()}
    diffs = {d: torch.empty(len(index) + 2, len(pairs.pairs), dtype=torch.float64) for d in directions}
    total = len(directions) * len(pairs.pairs)
    with run.one_use(), progress_bar("patching between twins", total, show=run.progress) as advance:
        for rows, diff in patched(prompted, pairs, names, directions, positions, conditions):
            for direction in directions:
                diffs[direction][:, rows] = diff[direction]
                advance(len(rows))
    results = {direction: _result(found[2:], found[0], index) for direction, found in diffs.items()}
    settings = {
        "model": model_record(model),
        "prompt": prompt_record(prompt),
        "max_length": prompted.max_length,
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "neurons": [list(pair) for pair in neurons],
        "neurons_chosen": where_chosen,
        "site": SITE,
        "positions": positions_record(positions),
        "positions_frame": "with virtual tokens",
        "twins": twins_record(twins),
        "clean_labels": list(pairs.clean_labels),
        "units": units_record(pairs.together),
        "n_cut": pairs.n_cut(prompted),
        "n_random": n_random,
        "notes": notes,
        "seed": seed,
    }
    return NeuronPatching(results, {d: found[1] for d, found in diffs.items()}, settings)


def _baseline(result: PatchingResult) -> Float[Tensor, " pair"]:
    """The logit diffs of the base runs, which every result here has."""
    assert result.baseline is not None  # for type checkers
    return result.baseline


def _result(
    values: Float[Tensor, "condition pair"], baseline: Float[Tensor, " pair"], index: pd.DataFrame
) -> PatchingResult:
    return PatchingResult(
        values=values,
        axis_names=[],
        index_df=index,
        metric_names=["logit_diff"],
        reduced=False,
        baseline=baseline,
    )
