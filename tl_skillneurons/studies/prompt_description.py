"""Which virtual tokens matter, and what are they? One row per prompt position, each number beside what luck gives.

- **Where the best neurons peak.** Of the best neurons, the share whose best position is this one (equally good ones
  share a neuron); if positions were alike, each would have ``1 / n_positions``. Neurons are correlated, so the
  interval (exact binomial) is too narrow.
- **What it is near to.** Norm and distance to the nearest word of the vocabulary, as percentiles of what words have
  among themselves; the nearest words, beside the similarity that a random direction reaches. Tuned prompts need not
  mean what they are near to (Khashabi et al., 2022).
- **Attention** given to the text and received from it, averaged over layers, heads and classes.
- **What it is worth.** Accuracy on ``report`` when it is dropped, and when it is put back to its initial value; and for
  the prompt as a whole, when its tokens are permuted.

What it does not show: tokens can stand in for each other, so one that can be dropped is not therefore empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.attention.patterns import attention_over_task
from tl_skillneurons.interventions.effects import accuracy
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import as_list, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.schedule import embedding_rows
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.stats.chance import clopper_pearson
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.tasks.task import Task

_N_SAMPLED = 2000  # words, and random directions, that percentiles come from
_COMPARED = ("peak_share", "best", "median", "without", "norm_percentile", "to_text", "from_text")


@dataclass(frozen=True, eq=False)
class PromptDescription:
    """What each prompt position is and does.

    Attributes:
        positions: A row per prompt and position: ``prompt``, ``position``, ``token`` ("mask" or ``<v0>``, ...);
            ``peak_share`` with its interval and ``uniform``; of all neurons' predictivity there on ``select`` the
            ``low_quartile``, ``median``, ``high_quartile`` and ``best``; for virtual tokens ``norm_percentile``,
            ``nearest`` words, ``cosine`` to the first, ``chance_cosine``, ``distance_percentile``; ``to_text``,
            ``from_text``; accuracy on ``report`` ``without`` it and with its ``initial`` value. ``role_of_scores``
            and ``role_of_accuracy`` say which examples these are of.
        prompts: A row per prompt: ``accuracy`` on ``report``, ``permuted`` (mean over shuffles) with its range.
        agreement: A row per pair of prompts: Spearman over ``n_positions`` of whatever was measured of
            ``peak_share``, ``best``, ``median``, ``without``, ``norm_percentile``, ``to_text`` and ``from_text``; NaN
            where either prompt's are the same everywhere. Of a few positions it can be anything by luck.
    """

    positions: pd.DataFrame
    prompts: pd.DataFrame
    agreement: pd.DataFrame


def prompt_record(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    scores: NeuronScores,
    *,
    amount: float | int = 0.02,
    n_nearest: int = 3,
    n_shuffles: int = 10,
    seed: int = 0,
    attention: bool = True,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> PromptDescription:
    """Describe every position of each prompt. How it came to be that way: :func:`~tl_skillneurons.studies.prompt_trajectory`.

    Args:
        scores: Of these prompts on this task.
        amount: The best neurons of each layer that peaks are counted for.
        n_nearest: Words of the vocabulary to name.
        n_shuffles: Permutations of the virtual tokens.
        attention: Whether to look at attention, which needs eager attention and a further pass.

    Raises:
        ValueError: When the scores are of another model or other prompts, or not read at prompt positions.
    """
    chosen = as_list(prompts)
    require_measured_here(scores, model, chosen)
    if scores.positions != "prompt":
        raise ValueError(f"the scores must be read at prompt positions, got positions={scores.positions!r}")
    require_int(n_nearest, "n_nearest")
    require_int(n_shuffles, "n_shuffles")
    skill = scores.top(amount)
    each = torch.maximum(scores.accuracy, 1 - scores.accuracy)
    peaks_at = _peaks(scores)
    vocabulary = embedding_rows(model, torch.arange(min(model.W_E.shape[0], model.cfg.d_vocab))).float()
    generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
    norms = _Vocabulary(vocabulary, generator)
    batches = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    rows, whole = [], []
    n_runs = sum(1 + 2 * prompt.n_virtual_tokens + n_shuffles for prompt in chosen)
    with progress_bar("prompt positions, on report", n_runs, show=progress) as advance:

        def measure(prompt: SoftPrompt, embedding: Tensor) -> float:
            advance()
            other = SoftPrompt(
                embedding, placement=prompt.placement, readout=prompt.readout, prepend_bos=prompt.prepend_bos
            )
            split = task.split("report")
            prompted = PromptedModel(model, other, task.label_words)
            return accuracy(prompted, list(split["text"]), list(split["label"]), **batches)

        for number, prompt in enumerate(chosen):
            require_sees_text(PromptedModel(model, prompt), "prompt")
            embedding = prompt.embedding.detach()
            n_tokens = prompt.n_virtual_tokens
            n_before = scores.baseline.shape[2] - n_tokens  # the mask, where there is one
            peaks = peaks_at[number][skill.layer, :, skill.index].sum(0)
            intact = measure(prompt, embedding)
            orders = [torch.randperm(n_tokens, generator=generator) for _ in range(n_shuffles)]
            shuffled = torch.tensor(
                [measure(prompt, embedding[order]) for order in orders], dtype=torch.float64
            )
            given = received = None
            if attention:
                seen = attention_over_task(model, prompt, task, progress=False, **batches)
                given, received = seen.given[..., 0].mean((0, 1, 2)), seen.received.mean((0, 1, 2))
            for position in range(n_before + n_tokens):
                at = each[number, :, position].flatten()
                quartiles = at.quantile(torch.tensor([0.25, 0.75], dtype=at.dtype)).tolist()
                low, high = clopper_pearson(round(float(peaks[position])), len(skill))
                token = position - n_before
                row: dict[str, Any] = {
                    "prompt": number,
                    "position": position,
                    "token": "mask" if token < 0 else f"<v{token}>",
                    "peak_share": float(peaks[position]) / len(skill),
                    "peak_low": low,
                    "peak_high": high,
                    "uniform": 1 / (n_before + n_tokens),
                    "low_quartile": quartiles[0],
                    "median": float(at.median()),
                    "high_quartile": quartiles[1],
                    "best": float(at.max()),
                }
                if given is not None:
                    row |= {"to_text": float(given[position]), "from_text": float(received[position])}
                if token >= 0:
                    row |= norms.describe(model, embedding[token].float().cpu(), n_nearest)
                    rest = [other for other in range(n_tokens) if other != token]
                    row["without"] = measure(prompt, embedding[rest]) if rest else float("nan")
                    back = embedding.clone()
                    if prompt.initial is not None:
                        back[token] = prompt.initial[token].to(back)
                        row["initial"] = measure(prompt, back)
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
    return PromptDescription(frame, pd.DataFrame(whole).assign(role="report"), _agreement(frame))


def _peaks(scores: NeuronScores) -> Float[Tensor, "prompt layer position neuron"]:
    """1 at each neuron's best position; where several are equally good, they share it."""
    either = torch.maximum(scores.correct, scores.n_select - scores.correct)
    best = (either == either.amax(2, keepdim=True)).double()
    return best / best.sum(2, keepdim=True)


class _Vocabulary:
    """What norms, distances and similarities words have among themselves, from a random sample of them."""

    def __init__(self, rows: Float[Tensor, "word d_embed"], generator: torch.Generator) -> None:
        self.rows = rows.cpu()
        self.norms = self.rows.norm(dim=1)
        self.unit = self.rows / self.norms.clamp(min=1e-12)[:, None]
        drawn = torch.randperm(len(rows), generator=generator)[:_N_SAMPLED]
        alike = self.unit[drawn] @ self.unit.T
        alike[torch.arange(len(drawn)), drawn] = -1
        self.nearest_of_words = alike.amax(1)
        noise = torch.randn(min(200, _N_SAMPLED), rows.shape[1], generator=generator)
        self.chance = float((noise / noise.norm(dim=1, keepdim=True) @ self.unit.T).amax(1).mean())

    def describe(self, model: Any, token: Float[Tensor, " d_embed"], n_nearest: int) -> dict[str, Any]:
        """Of one virtual token: percentiles among words, and the words nearest to it."""
        cosine = self.unit @ (token / token.norm().clamp(min=1e-12))
        best = cosine.topk(n_nearest)
        return {
            "norm_percentile": 100 * float((self.norms <= token.norm()).double().mean()),
            "nearest": " ".join(map(str, model.tokenizer.convert_ids_to_tokens(best.indices.tolist()))),
            "cosine": float(best.values[0]),
            "chance_cosine": self.chance,
            "distance_percentile": 100 * float((self.nearest_of_words >= best.values[0]).double().mean()),
        }


def _agreement(positions: pd.DataFrame) -> pd.DataFrame:
    """Spearman over positions for each pair of equally long prompts."""
    by_prompt = dict(iter(positions.groupby("prompt")))
    compared = [name for name in _COMPARED if name in positions]
    rows = []
    for one, first in by_prompt.items():
        for other, second in by_prompt.items():
            if other <= one or len(first) != len(second):
                continue
            row: dict[str, Any] = {"one": one, "other": other, "n_positions": len(first)}
            for name in compared:
                sides = [torch.tensor(frame[name].to_numpy(dtype="float64")) for frame in (first, second)]
                known = ~(sides[0].isnan() | sides[1].isnan())
                row[name] = spearman(sides[0][known], sides[1][known]) if known.sum() > 2 else float("nan")
            rows.append(row)
    return pd.DataFrame(rows, columns=["one", "other", "n_positions", *compared])
