"""How often whole runs claim something of labels that mean nothing: ``python tests/calibration/noise_runs.py 20``.

The planted model answers a task whose labels were dealt out anew in every role, once as a run does it, which stops
where no prompt beats the majority, and once with every prompt used whatever it answers, so that the later questions
are asked too. Each may be answered YES once in 20 seeds; of the true labels the same runs say YES.
Seen: of 20 seeds no question was answered YES, either way; the price once lay outside the controls' range.
"""

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from unittest.mock import patch

sys.path.append(str(Path(__file__).parents[1] / "support"))

import planted

import tl_skillneurons as skn
from tl_skillneurons.find.answers import PromptAnswers

ROLES = ("train", "baseline", "select", "report")


def answers_of(task, seed, *, whatever=False):
    """The verdicts of a small run on ``task``, by question; with ``whatever`` no prompt is refused."""
    every = property(lambda self: tuple(range(len(self.logits))))
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        patch.object(PromptAnswers, "beating", every if whatever else PromptAnswers.beating),
    ):
        warnings.simplefilter("ignore")  # prompts that learn nothing say so
        found = skn.find_skill_neurons(
            planted.model(),
            task,
            out=Path(folder) / "run",
            n_virtual_tokens=2,
            n_prompts=2,
            n_steps=8,
            top=2,
            evidence=skn.find.Evidence(19, 199, n_curve_examples=2, n_curve_random=1, n_profiled=1),
            seed=seed,
            training=skn.prompts.TrainingOptions(batch_size=8),
            run=skn.RunOptions(progress=False),
        )
        return {verdict.question: verdict.answer for verdict in found.verdicts}


def count(n_seeds):
    """Of so many seeds, how often each question had each answer: as a run does it, and with every prompt used."""
    counts = {"as it is": Counter(), "every prompt used": Counter()}
    for seed in range(n_seeds):
        task = planted.task(40, 40, 40, seed=seed).with_shuffled_labels(seed, roles=ROLES)
        for whatever, counted in zip((False, True), counts.values(), strict=True):
            counted.update(answers_of(task, seed, whatever=whatever).items())
    return counts


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for how, counted in count(n).items():
        print(f"labels that mean nothing, {n} seeds, {how}:")
        for (question, answer), times in sorted(counted.items()):
            print(f"  {question} {answer}: {times}")
    print("true labels:", answers_of(planted.task(40, 40, 40), 0))
