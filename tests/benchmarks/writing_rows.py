"""The rows about generation: the same texts in the same left-padded batch, the same number of new tokens."""

from collections.abc import Callable

import measure
import torch
import transformers
from measure import Measured
from setups import Setting, bridge, quiet, task_of, untouched

import tl_skillneurons as skn
from tl_skillneurons.interventions import Scale
from tl_skillneurons.models.sites import neuron_shape


def writing(*, scaled: bool) -> Callable[[Setting], Measured]:
    """What SmolLM2 writes after 8 texts, against Hugging Face's ``generate`` of the untouched model.

    Args:
        scaled: Scale 2% of every layer's neurons at what is written; the peer does no such thing.
    """

    def run(setting: Setting) -> Measured:
        n_new = setting.sizes.n_written
        model = bridge("smollm2")
        texts = list(task_of(setting.sst2).split("select")["text"])[:8]
        prompted = skn.PromptedModel(model, None, run=skn.RunOptions(batch_size=8, progress=False))
        n_layers, d_mlp = neuron_shape(model)
        drawn = torch.rand(n_layers, d_mlp, generator=torch.Generator().manual_seed(0)) < 0.02
        hooks = skn.ablate(skn.NeuronSet.from_mask(drawn), how=Scale(1.1), positions="generated")
        peer = untouched("smollm2", transformers.AutoModelForCausalLM)
        tokens = prompted.tokens(texts)
        options = {"max_new_tokens": n_new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

        def ours() -> skn.prompts.Completions:
            return prompted.generate(texts, n_new, interventions=hooks if scaled else [], end_ids=[])

        def theirs() -> torch.Tensor:
            with torch.no_grad():
                return peer.generate(tokens.ids, attention_mask=tokens.attention_mask, **options)

        with quiet():
            written = [list(ids) for ids in ours().token_ids]
            expected = theirs()[:, tokens.ids.shape[1] :].tolist()
            measured = measure.paired(ours, theirs, setting.n_pairs, memory=False)
        same = sum(a == b for a, b in zip(written, expected, strict=True))
        measured.details = {
            "tokens": list(tokens.ids.shape),
            "new tokens": n_new,
            "rows of equal tokens": same,
        }
        return measured

    return run
