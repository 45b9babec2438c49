"""One prompt's scores, out of those of a set of prompts."""

from dataclasses import replace

from tl_skillneurons._checks import require_int
from tl_skillneurons.scores.neuron_scores import NeuronScores


def scores_of_prompt(scores: NeuronScores, prompt: int) -> NeuronScores:
    """The scores that this prompt alone has, with its outcomes where they were kept; a null has to be drawn anew.

    Args:
        prompt: Its number in the set.

    Raises:
        ValueError: When there is no such prompt.

    Example:
        >>> scores_of_prompt(scores, 1).predictivity  # scores.predictivity_by_prompt[1]
    """
    if not 0 <= require_int(prompt, "prompt", minimum=0) < scores.n_prompts:
        raise ValueError(f"prompt must be in [0, {scores.n_prompts}), got {prompt}")
    own = {
        name: getattr(scores, name)[prompt : prompt + 1]
        for name in ("baseline", "std", "mean_abs", "correct")
    }
    recorded = scores.provenance.get("prompts")
    return replace(
        scores,
        **own,
        null=None,
        outcomes=None if scores.outcomes is None else scores.outcomes.of_prompt(prompt),
        provenance=scores.provenance
        if recorded is None
        else {**scores.provenance, "prompts": recorded[prompt : prompt + 1]},
    )
