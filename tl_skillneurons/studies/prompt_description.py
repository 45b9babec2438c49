"""Which virtual tokens matter, and what are they? One row per prompt position, each number beside what luck gives.

- **Where the best neurons peak.** Of the best neurons, the share whose best position is this one (equally good ones
  share a neuron); if positions were alike, each would have ``1 / n_positions``. Neurons are correlated, so
  they are no units to make an interval of, and there is none.
- **What it is near to.** Norm and distance to the nearest word of the vocabulary, as percentiles of what words have
  among themselves; the nearest words, beside the similarity that a random direction reaches. Tuned prompts need not
  mean what they are near to (Khashabi et al., 2022).
- **Attention** given to the text and received from it, averaged over layers, heads and classes.
- **What it is worth.** Accuracy on ``report`` when it is dropped, and when it is put back to its initial value; and for
  the prompt as a whole, when its tokens are permuted.

Prompts may agree on the positions because positions differ, whatever the labels mean. So what comes from scores stands
beside the same with permuted labels, dealt out anew to the units of ``select``, the same for both prompts.

What it does not show: tokens can stand in for each other, so one that can be dropped is not therefore empty. The
control is a prompt tuned on shuffled labels (``task.with_shuffled_labels(seed)``), described the same way.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import even
from tl_skillneurons.attention.patterns import attention_over_task
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.schedule import embedding_rows
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.outcomes import count_right
from tl_skillneurons.stats.ranks import median, spearman
from tl_skillneurons.studies._common import load_tables, save_tables, settings_of, soft_prompts
from tl_skillneurons.studies.permuted_stability import share_as_large
from tl_skillneurons.tasks.task import Task

KIND = "PromptDescription"
_N_SAMPLED = 2000  # words, and random directions, that percentiles come from
_N_AGREE, _N_AT_ONCE = 99, 10  # permutations of labels that agreement is compared with
_OF_SCORES = ("peak_share", "best", "median")
_COMPARED = ("peak_share", "best", "median", "without", "norm_percentile", "to_text", "from_text")


@dataclass(frozen=True, eq=False)
class PromptDescription:
    """What each prompt position is and does.

    Attributes:
        positions: A row per prompt and position: ``prompt``, ``position``, ``token`` ("mask" or ``<v0>``, ...);
            ``peak_share`` and ``uniform``; of all neurons' predictivity there on ``select`` the
            ``low_quartile``, ``median``, ``high_quartile`` and ``best``; for virtual tokens ``norm_percentile``,
            ``nearest`` words, ``cosine`` to the first, ``chance_cosine``, ``distance_percentile``; ``to_text``,
            ``from_text``; accuracy on ``report`` ``without`` it and with its ``initial`` value. ``role_of_scores``
            and ``role_of_accuracy`` say which examples these are of.
        prompts: A row per prompt: ``accuracy`` on ``report``, ``permuted`` (mean over shuffles) with its range.
        agreement: A row per pair of prompts: Spearman over ``n_positions`` of whatever was measured of
            ``peak_share``, ``best``, ``median``, ``without``, ``norm_percentile``, ``to_text`` and ``from_text``; NaN
            where either prompt's are the same everywhere. Of a few positions it can be anything by luck. Of the first
            three also the mean under 99 permutations of labels (``null_peak_share``, ...) and how often these agree as
            much (``p_peak_share``, ...); NaN of scores that kept no outcomes.
        settings: Model, task, prompts and settings, as plain JSON values.

    Example:
        >>> found = skn.studies.describe_prompt(model, prompts, task, scores)
        >>> found.positions.sort_values("without").head(3), found.prompts[["accuracy", "permuted"]]
    """

    positions: pd.DataFrame
    prompts: pd.DataFrame
    agreement: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            n_prompts=len(self.prompts),
            n_positions=len(self.positions),
            accuracy=float(self.prompts.accuracy.mean()),
            permuted=float(self.prompts.permuted.mean()),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`positions`."""
        return self.positions.copy()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the description to one JSON file, whole or not at all."""
        tables = {"positions": self.positions, "prompts": self.prompts, "agreement": self.agreement}
        return save_tables(path, KIND, self.settings, tables)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PromptDescription":
        """The description that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("positions", "prompts", "agreement"))
        return cls(**tables, settings=settings)


def describe_prompt(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    scores: NeuronScores,
    *,
    amount: float | int = 0.02,
    n_nearest: int = 3,
    n_shuffles: int = 10,
    seed: int = 0,
    attention: bool = True,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> PromptDescription:
    """Every position of each prompt: its neurons, its neighbours among words, its attention, and what it is worth.

    How it came to be that way: :func:`~tl_skillneurons.studies.prompt_trajectory`.

    Args:
        scores: Of these prompts on this task; ``score_neurons(..., keep_outcomes=True)`` lets what prompts agree on
            stand beside permuted labels.
        amount: The best neurons of each layer that peaks are counted for.
        n_nearest: Words of the vocabulary to name.
        n_shuffles: Permutations of the virtual tokens.
        seed: Draws the permutations, and the words and directions that percentiles come from.
        attention: Whether to look at attention, which needs eager attention and a further pass.
        max_length: Longest sequence in tokens; by default what the prompts were tuned with.

    Raises:
        ValueError: When the scores are of another model or other prompts, were measured on texts cut to another
            length, or not read at prompt positions.

    Example:
        >>> found = skn.studies.describe_prompt(model, prompts, task, scores)
        >>> found.positions[["token", "peak_share", "uniform", "without"]]
    """
    chosen = soft_prompts(prompts)
    require_measured_here(scores, model, chosen, task=task, max_length=max_length)
    if scores.positions != "prompt":
        raise ValueError(f"the scores must be read at prompt positions, got positions={scores.positions!r}")
    require_int(n_nearest, "n_nearest")
    require_int(n_shuffles, "n_shuffles")
    generator = torch.Generator().manual_seed(require_seed(seed))
    for prompt in chosen:
        require_sees_text(PromptedModel(model, prompt, max_length=max_length, run=run), "prompt")
    vocabulary = _Vocabulary(model, generator)
    of_scores = _score_columns(scores, amount)
    rows, whole = [], []
    with progress_bar(
        "prompt positions, on report", _n_runs(chosen, n_shuffles), show=run.progress
    ) as advance:
        for number, prompt in enumerate(chosen):
            tried = _tried(model, prompt, task, max_length, run, advance)
            embedding = prompt.embedding.detach()
            intact = tried(embedding)
            orders = [torch.randperm(len(embedding), generator=generator) for _ in range(n_shuffles)]
            shuffled = torch.tensor([tried(embedding[order]) for order in orders], dtype=torch.float64)
            looks = _attention(model, prompt, task, max_length, run) if attention else None
            n_before = len(of_scores[number]) - len(embedding)  # the mask, where there is one
            for position, of_position in enumerate(of_scores[number]):
                token = position - n_before
                row = {
                    "prompt": number,
                    "position": position,
                    "token": "mask" if token < 0 else f"<v{token}>",
                }
                row |= of_position
                if looks is not None:
                    row |= {name: float(values[position]) for name, values in looks.items()}
                if token >= 0:
                    row |= vocabulary.describe(embedding[token].float().cpu(), n_nearest)
                    row |= _worth(prompt, token, tried)
                rows.append(row)
            whole.append(
                {
                    "prompt": number,
                    "accuracy": intact,
                    "permuted": float(shuffled.mean()),
                    "permuted_low": float(shuffled.min()),
                    "permuted_high": float(shuffled.max()),
                    "n_shuffles": n_shuffles,
                }
            )
    frame = pd.DataFrame(rows).assign(role_of_scores="select", role_of_accuracy="report")
    counts = {"amount": amount, "n_nearest": n_nearest, "n_shuffles": n_shuffles}
    settings = settings_of(
        model, task, chosen, **counts, seed=seed, attention=attention, max_length=max_length
    )
    agree = _beside_luck(_agreement(frame), scores, amount, seed)
    return PromptDescription(frame, pd.DataFrame(whole).assign(role="report"), agree, settings)


def _score_columns(scores: NeuronScores, amount: float | int) -> list[list[dict[str, float]]]:
    """Of each prompt and position: the share of the best neurons that peak there, and all neurons' predictivity."""
    even(scores.d_mlp, "a description of prompts")
    skill = scores.top(amount)
    each = torch.maximum(scores.accuracy, 1 - scores.accuracy)
    n_positions = each.shape[2]
    columns = []
    for of_prompt, peaks_at in zip(each, _peaks(scores), strict=True):
        peaks = peaks_at[skill.layer, :, skill.index].sum(0)
        rows = []
        for position in range(n_positions):
            at = of_prompt[:, position].flatten()
            low_quartile, high_quartile = at.quantile(torch.tensor([0.25, 0.75], dtype=at.dtype)).tolist()
            rows.append(
                {
                    "peak_share": float(peaks[position]) / len(skill),
                    "uniform": 1 / n_positions,
                    "low_quartile": low_quartile,
                    "median": median(at),
                    "high_quartile": high_quartile,
                    "best": float(at.max()),
                }
            )
        columns.append(rows)
    return columns


def _peaks(scores: NeuronScores) -> Float[Tensor, "prompt layer position neuron"]:
    """1 at each neuron's best position; where several are equally good, they share it."""
    either = torch.maximum(scores.correct, scores.n_select - scores.correct)
    best = (either == either.amax(2, keepdim=True)).double()
    return best / best.sum(2, keepdim=True)


def _n_runs(prompts: Sequence[SoftPrompt], n_shuffles: int) -> int:
    """How often ``report`` is answered."""
    alone = [(p.n_virtual_tokens > 1) + (p.initial is not None) for p in prompts]
    return sum(1 + n_shuffles + n * p.n_virtual_tokens for n, p in zip(alone, prompts, strict=True))


def _tried(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    max_length: int | None,
    run: RunOptions,
    advance: Advance,
) -> Callable[[Tensor], float]:
    """A function that gives the accuracy on ``report`` with other rows in the place of the prompt's."""
    limit = prompt.max_length if max_length is None else max_length

    def accuracy(embedding: Float[Tensor, "virtual_token d_embed"]) -> float:
        other = SoftPrompt(
            embedding,
            placement=prompt.placement,
            readout=prompt.readout,
            prepend_bos=prompt.prepend_bos,
            chat=prompt.chat,
        )
        advance()
        return PromptedModel.for_task(model, other, task, max_length=limit, run=run).accuracy(task)

    return accuracy


def _worth(prompt: SoftPrompt, token: int, tried: Callable[[Tensor], float]) -> dict[str, float]:
    """Accuracy without one virtual token, and with its initial value where that was kept."""
    embedding = prompt.embedding.detach()
    rest = [other for other in range(len(embedding)) if other != token]
    found = {"without": tried(embedding[rest]) if rest else float("nan")}
    if prompt.initial is not None:
        back = embedding.clone()
        back[token] = prompt.initial[token].to(back)
        found["initial"] = tried(back)
    return found


def _attention(
    model: TransformerBridge, prompt: SoftPrompt, task: Task, max_length: int | None, run: RunOptions
) -> dict[str, Float[Tensor, " position"]]:
    """What each prompt position gives to the text and gets from it, averaged over classes, layers and heads."""
    seen = attention_over_task(model, prompt, task, max_length=max_length, run=replace(run, progress=False))
    return {"to_text": seen.given[..., 0].mean((0, 1, 2)), "from_text": seen.received.mean((0, 1, 2))}


class _Vocabulary:
    """What norms, distances and similarities words have among themselves, from a random sample of them."""

    def __init__(self, model: TransformerBridge, generator: torch.Generator) -> None:
        known = torch.arange(min(model.W_E.shape[0], model.cfg.d_vocab))
        self.tokenizer = model.tokenizer
        self.rows = embedding_rows(model, known).float().cpu()
        self.norms = self.rows.norm(dim=1)
        self.unit = self.rows / self.norms.clamp(min=1e-12)[:, None]
        drawn = torch.randperm(len(self.rows), generator=generator)[:_N_SAMPLED]
        alike = self.unit[drawn] @ self.unit.T
        alike[torch.arange(len(drawn)), drawn] = -1
        self.nearest_of_words = alike.amax(1)
        noise = torch.randn(min(200, _N_SAMPLED), self.rows.shape[1], generator=generator)
        self.chance = float((noise / noise.norm(dim=1, keepdim=True) @ self.unit.T).amax(1).mean())

    def describe(self, token: Float[Tensor, " d_embed"], n_nearest: int) -> dict[str, Any]:
        """Of one virtual token: percentiles among words, and the words nearest to it."""
        cosine = self.unit @ (token / token.norm().clamp(min=1e-12))
        best = cosine.topk(n_nearest)
        return {
            "norm_percentile": 100 * float((self.norms <= token.norm()).double().mean()),
            "nearest": " ".join(map(str, self.tokenizer.convert_ids_to_tokens(best.indices.tolist()))),
            "cosine": float(best.values[0]),
            "chance_cosine": self.chance,
            "distance_percentile": 100 * float((self.nearest_of_words >= best.values[0]).double().mean()),
        }


def _agreement(positions: pd.DataFrame) -> pd.DataFrame:
    """Spearman over positions for each pair of prompts, which are equally long: they were scored as one set."""
    n_prompts = int(positions["prompt"].max()) + 1
    by_prompt = {number: positions[positions["prompt"] == number] for number in range(n_prompts)}
    compared = [name for name in _COMPARED if name in positions]
    rows = []
    for (one, first), (other, second) in combinations(by_prompt.items(), 2):
        row: dict[str, Any] = {"one": one, "other": other, "n_positions": len(first)}
        for name in compared:
            sides = [torch.tensor(frame[name].to_numpy(dtype="float64")) for frame in (first, second)]
            known = ~(sides[0].isnan() | sides[1].isnan())
            row[name] = spearman(sides[0][known], sides[1][known]) if known.sum() > 2 else float("nan")
        rows.append(row)
    return pd.DataFrame(rows, columns=["one", "other", "n_positions", *compared])


def _beside_luck(agree: pd.DataFrame, scores: NeuronScores, amount: float | int, seed: int) -> pd.DataFrame:
    """What comes of scores, beside the same under permuted labels, as far as the scores kept their outcomes."""
    drawn = [_agreement(_position_rows(one, amount)) for one in _permuted(scores, seed)] if len(agree) else []
    for name in _OF_SCORES:
        null = np.array([frame[name].to_numpy() for frame in drawn]).reshape(len(drawn), len(agree))
        known = [own[~np.isnan(own)] for own in null.T]
        agree[f"null_{name}"] = [float(own.mean()) if len(own) else math.nan for own in known]
        agree[f"p_{name}"] = [
            share_as_large(value, own) if value == value else math.nan
            for value, own in zip(agree[name], known, strict=True)
        ]
    return agree


def _position_rows(scores: NeuronScores, amount: float | int) -> pd.DataFrame:
    """The rows of the positions as far as they come of scores."""
    return pd.DataFrame(
        [
            {"prompt": number, **row}
            for number, rows in enumerate(_score_columns(scores, amount))
            for row in rows
        ]
    )


def _permuted(scores: NeuronScores, seed: int) -> Iterator[NeuronScores]:
    """The scores that permuted labels give; none where no outcomes were kept, or labels have no other order."""
    outcomes = scores.outcomes
    if outcomes is None or outcomes.units.log_orders(outcomes.labels) < 1e-9:
        return
    labels = (outcomes.units.permuted(outcomes.labels, _N_AGREE, seed=seed) == scores.class_id).long()
    for block in labels.split(_N_AT_ONCE):
        correct = torch.empty(len(block), *scores.correct.shape, dtype=scores.correct.dtype)
        for layer, neurons, counted in count_right(outcomes, torch.ones_like(block), block):
            for prompt, right in enumerate(counted):
                correct[:, prompt, layer, :, neurons] = ((right + block.shape[1]) / 2).to(correct)
        yield from (replace(scores, correct=one, null=None, outcomes=None) for one in correct)
