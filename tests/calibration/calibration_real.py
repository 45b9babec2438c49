"""Built-in movie reviews through a MiniLM of random weights, their labels shuffled word pair by word pair.

The 100 pairs of twins on ``select`` hold 26 different pairs of strings, but these are 12 word pairs: "bland", "bland,"
and "bland." are the same word, which MiniLM's tokenizer gives the same token. That there are 12 comes of two demands:
twins have equally many tokens, which leaves 49 of the 77 word pairs of the grammar, and no word stands in two roles,
which leaves ``select`` a quarter of them. So p-values by word pairs are multiples of 1/4096, and the smallest 1/2048.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

from calibration_tests import Measured, Row
from transformer_lens.tools.analysis.interchange import random_init_bridge

import tl_skillneurons as skn
from tl_skillneurons.scores.outcomes import RuleOutcomes
from tl_skillneurons.stats import Units

QUIET = skn.RunOptions(progress=False)
SETTING = "MiniLM, random weights"


@cache
def outcomes() -> RuleOutcomes:
    """Of every neuron's mean over the text, on the 100 pairs of ``select``; no word stands in two roles."""
    model = random_init_bridge(str(skn.packaged_model("minilm", verbose=False)), seed=0)
    task = skn.minimal_pairs("movie_reviews", n_pairs=400, disjoint_words=True, tokenizer=model.tokenizer)
    scores = skn.score_neurons(model, None, task, positions="mean", keep_outcomes=True, run=QUIET)
    return scores.outcomes


def real_rows() -> Iterator[Row]:
    """By word pairs, and what it gives to permute each pair of twins by itself."""
    by_words = outcomes().units
    twins = Units.of([by_words.pair.tolist()], what="pair of twins", pair=by_words.pair)
    for permuted, note in ((by_words, ""), (twins, "FAULT")):
        unit = f"{len(permuted)} {permuted.what}"
        yield Row(SETTING, "family-wise null", unit, partial(_calibrated, permuted), note=note)


def _calibrated(permuted: Units, n: int, seed: int) -> Measured:
    """The planted neuron is right on 0.65 of the texts here, each by itself."""
    found = skn.scores.check_calibration(
        replace(outcomes(), units=permuted),
        n_repetitions=n,
        n_permutations=39,
        units=outcomes().units,
        seed=seed,
        run=QUIET,
    )
    return found.n_false, (found.n_found if permuted is outcomes().units else None)
