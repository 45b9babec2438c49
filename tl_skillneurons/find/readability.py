"""Is the label readable? The best neurons' rules on ``report``, beside everything that could do as well.

The ``n`` best neurons of the model, by predictivity on ``select``, each with the threshold, position and direction that
were chosen there, are tried on ``report``, which chose nothing. Beside them stand

* random neurons of the same layers, with rules chosen in the same way (``p_random``: the rank among these sets);
* the level that the best of all neurons reaches by luck, under permuted labels;
* a linear probe over the ``n`` best of each prompt, and over equally many random neurons: what a crowd can do;
* the prompt itself.

What it does not show: that the model reads the neurons. Thousands usually carry a label that is in the text.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import n_neurons
from tl_skillneurons.neurons.controls import draw_controls
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.evaluated_rules import AllRules, RuleAccuracy
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.one_prompt import scores_of_prompt
from tl_skillneurons.scores.rules import evaluate_rules
from tl_skillneurons.stats.hypothesis_tests import rank_p_value
from tl_skillneurons.stats.intervals import two_level_bootstrap
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.studies.combining import VoteAndProbe, vote_and_probe
from tl_skillneurons.tasks.task import Task

N_BEST = 10
"""So many of the model's best neurons are asked, of small models fewer (:func:`best_of`)."""

KIND = "Readability"
_BEST, _RANDOM = "rules_of_the_best.json", "random_rules.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class Readability:
    """How well the label is read off the best neurons, on ``report``.

    Attributes:
        best: Accuracy of the best neurons' rules, with its interval.
        random: Mean accuracy of as many random neurons' rules, of each set.
        level: What the best of all neurons reaches by luck in 5 % of the permutations, on ``select``.
        expected: What it reaches on average.
        n_significant: How many neurons are above the level: a label can be read off each better than luck explains.
        probes: Of each prompt, a vote and a linear probe over its best neurons and over random ones.

    Example:
        >>> found.readability.to_dataframe()[["who", "accuracy", "low", "high"]]
    """

    best: RuleAccuracy
    random: Float[Tensor, " draw"]
    level: float
    expected: float
    n_significant: int
    probes: tuple[VoteAndProbe, ...]

    @property
    def n_best(self) -> int:
        """How many neurons were asked."""
        return len(self.best.table)

    @property
    def p_random(self) -> float:
        """How many of the random sets, the best neurons counted as one, are as accurate."""
        return rank_p_value(self.best.mean, self.random.tolist(), "greater")

    @property
    def smallest_p(self) -> float:
        """The smallest ``p_random`` that so many random sets allow."""
        return 1 / (len(self.random) + 1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row each for the best neurons, random ones, the probes, the prompts and luck: ``who``, ``accuracy``
        (the median of random sets) and its interval (``low``, ``high``; of random sets their range), ``what`` the
        interval is."""
        n, sets = self.n_best, len(self.random)
        rows = [
            (f"rules of the {n} best neurons", self.best.mean, self.best.low, self.best.high, "95 % interval")
        ]
        values = self.random.tolist()
        rows.append(
            (f"rules of {n} random neurons", median(values), min(values), max(values), f"{sets} sets")
        )
        for name in ("probe", "vote"):
            right = torch.stack([getattr(one, name)[-1] for one in self.probes]).double()
            mean = right[:, 0].mean(1)
            low, high = two_level_bootstrap(right[:, 0], units=self.probes[0].units)
            what = "linear probe" if name == "probe" else "vote"
            rows.append(
                (f"{what} over the {n} best", float(mean.mean()), float(low), float(high), "95 % interval")
            )
            drawn = right[:, 1:].mean((0, 2)).tolist()
            what_drawn = f"{len(drawn)} sets"
            rows.append(
                (f"{what} over {n} random neurons", median(drawn), min(drawn), max(drawn), what_drawn)
            )
        own = torch.stack([one.prompt for one in self.probes]).double()
        low, high = two_level_bootstrap(own, units=self.probes[0].units)
        rows.append(("the prompts themselves", float(own.mean()), float(low), float(high), "95 % interval"))
        rows.append(
            ("best of all neurons by luck", self.expected, float("nan"), self.level, "5 % of permutations")
        )
        frame = pd.DataFrame(rows, columns=["who", "accuracy", "low", "high", "what"])
        return frame.assign(role=[*["report"] * (len(rows) - 1), "select"])

    def __repr__(self) -> str:
        return one_line(
            self,
            n_best=self.n_best,
            best=self.best.mean,
            random=median(self.random.tolist()),
            level=self.level,
        )

    def _repr_html_(self) -> str:
        return html_of(self)


def measure_readability(
    model: TransformerBridge,
    prompts: list[SoftPrompt],
    task: Task,
    scores: NeuronScores,
    rules: AllRules,
    *,
    n_random: int,
    seed: int,
    folder: Path,
    run: RunOptions,
) -> Readability:
    """The readability of the model's best neurons; each part is kept in ``folder`` and not measured again.

    Args:
        rules: Every neuron's rule on ``report``.
    """
    best = best_of(scores)
    with progress_bar("reading labels", 1 + len(prompts), show=run.progress) as advance:
        if not (folder / _BEST).exists():
            evaluate_rules(model, prompts, task, scores, best, seed=seed, run=run).save(folder / _BEST)
        if not (folder / _RANDOM).exists():
            controls = draw_controls(best, n_random, seed=seed)
            random = torch.stack([rules.accuracy_of(one).mean() for one in controls.sets])
            save_tensors(folder / _RANDOM, KIND, {"random": random}, {})
        advance()
        for number, prompt in enumerate(prompts):
            path = _probe_file(folder, number)
            if not path.exists():
                own = scores_of_prompt(scores, number)
                vote_and_probe(
                    model, prompt, task, own, [len(best)], n_random=n_random, seed=seed, run=run
                ).save(path)
            advance()
    return load_readability(folder, scores)


def load_readability(folder: Path, scores: NeuronScores) -> Readability:
    """What :func:`measure_readability` left in ``folder``.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When a file is corrupt, or of other prompts or another task.
    """
    random, _ = load_tensors(folder / _RANDOM, KIND)
    best = RuleAccuracy.load(folder / _BEST)
    probes = tuple(VoteAndProbe.load(_probe_file(folder, number)) for number in range(scores.n_prompts))
    prompts = [one for probe in probes for one in probe.settings["prompts"]]
    if not prompts == best.provenance["prompts"] == scores.provenance["prompts"]:
        raise ValueError(f"{folder} was measured with other prompts; delete it, or choose another folder")
    null = scores.null
    assert null is not None  # scores of a run have one
    return Readability(
        best, random["random"], null.level(), null.expected(), len(scores.significant()), probes
    )


def best_of(scores: NeuronScores) -> NeuronSet:
    """The best neurons of the model: ten, and of small models no more than one in fifty."""
    n = max(1, min(N_BEST, n_neurons(scores.n_layers, scores.d_mlp) // 50))
    return scores.top(n, per="model")


def _probe_file(folder: Path, number: int) -> Path:
    return folder / f"probe-{number}.safetensors"
