"""Scores say where they were measured, and are used there: same model, same prompts, texts cut to the same length."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.records import model_differences, model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, as_list, prompt_record, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import stand_alike
from tl_skillneurons.scores.ranked import Scored


def prompted_set(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    positions: str,
    *,
    label_words: Mapping[int, str | int] | None = None,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> list[PromptedModel]:
    """The model with each prompt of a set, which all see the text, and see it cut to one length.

    Raises:
        ValueError: For prompts that don't see the text at these positions, or that were tuned with different lengths
            where ``max_length`` does not choose one.
    """
    prompted = [
        PromptedModel(model, prompt, label_words, max_length=max_length, run=run)
        for prompt in as_list(prompts)
    ]
    for one in prompted:
        require_sees_text(one, positions)
    lengths = {one.max_length for one in prompted}
    if len(lengths) > 1:
        raise ValueError(
            f"the prompts of one set must see texts cut to one length, these were tuned with max_length="
            f"{' and '.join(map(str, sorted(lengths, key=lambda n: (n is None, n))))}; give max_length"
        )
    return prompted


def require_alike(prompted: Sequence[PromptedModel]) -> None:
    """Refuse prompts that one run of a text can't serve.

    Raises:
        ValueError: For prompts that differ in their virtual tokens' number, their placement or their special tokens.
    """
    if len(stand_alike(prompted)) > 1:
        raise ValueError("prompts of one set must have equally many virtual tokens and one placement")


def provenance_of(prompted: Sequence[PromptedModel]) -> dict[str, Any]:
    """What scores record of where they were measured, as plain JSON values."""
    return {
        "model": model_record(prompted[0].model),
        "prompts": [None if one.prompt is None else prompt_record(one.prompt) for one in prompted],
        "max_length": prompted[0].max_length,
    }


def require_measured_here(
    scores: Scored,
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt | None] | None,
    *,
    max_length: int | None = None,
) -> None:
    """Refuse scores of another model, of other prompts, or of texts cut to another length than they are cut to here.

    What scores don't record (those made by hand) is not compared.

    Args:
        max_length: As it will be given to whatever uses the scores; ``None`` is what each prompt was tuned with.

    Raises:
        ValueError: In one sentence, what differs and what to give.
    """
    here, there = neuron_shape(model), (scores.n_layers, scores.d_mlp)
    if here != there:
        name = scores.provenance.get("model", {}).get("name", "another model")
        raise ValueError(
            f"the scores are of {name} with [layer, neuron] = {list(there)}, {model.cfg.model_name} has "
            f"{list(here)}; score this model"
        )
    differs = model_differences(scores.provenance.get("model", {}), model)
    if differs:
        warnings.warn(f"these scores are of another model ({differs})", stacklevel=3)
    chosen = [prompts] if prompts is None or isinstance(prompts, SoftPrompt) else list(prompts)
    measured = scores.provenance.get("prompts", [None] * scores.n_prompts)
    given = [None if prompt is None else prompt_record(prompt) for prompt in chosen]
    if len(given) != scores.n_prompts or any(m and g != m for m, g in zip(measured, given, strict=True)):
        raise ValueError(
            f"the scores are of {scores.n_prompts} prompts that are not the {len(given)} given; "
            "give the prompts that were scored, in the same order"
        )
    if "max_length" not in scores.provenance:
        return
    limit = scores.provenance["max_length"]
    for prompt in chosen:
        own = PromptedModel(model, prompt, max_length=max_length).max_length
        if own != limit:
            was, now = ("not cut" if n is None else f"cut to {n} tokens" for n in (limit, own))
            give = "" if limit is None else f"max_length={limit}, or "
            raise ValueError(
                f"the scores were measured on texts {was}, which here are {now}; "
                f"give {give}scores measured with max_length={own}"
            )
