"""Direct effects: what changes when all later layers and the norms' scales stay as in the intact run."""

import warnings

import families
import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, PromptedModel, RunOptions, SoftPrompt, ablate
from tl_skillneurons.interventions import Noise, direct_logits

TEXTS = ["the film is good", "a dull plot and a slow scene", "music was very bright"]
WORDS = {0: "negative", 1: "positive"}


def prompted(family, dtype=torch.float32, **run):
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return PromptedModel(
        families.bridge(family, dtype=dtype),
        SoftPrompt(rows, placement=placement),
        WORDS,
        run=RunOptions(**run),
    )


def test_without_interventions_nothing_changes_and_two_add_up():
    one = prompted("llama")
    intact = one.class_logits(TEXTS).detach()
    first, second = NeuronSet([0], [3]), NeuronSet([1, 1], [7, 9])
    hooks = [ablate(n, positions="prompt") for n in (first, second, first | second)]
    nothing, a, b, both = direct_logits(one, TEXTS, intact, [[], *hooks])
    assert torch.equal(nothing, intact)
    torch.testing.assert_close(both - intact, (a - intact) + (b - intact), rtol=1e-4, atol=1e-5)
    assert (a != intact).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo", "lfm2", "qwen2_moe"])
def test_the_last_layers_direct_effect_is_its_write_through_the_last_norm_at_the_intact_scale(family):
    one = prompted(family)
    hf = families.hf_model(family)
    norm = {"gpt2": lambda: hf.transformer.ln_f, "lfm2": lambda: hf.model.embedding_norm}.get(
        family, lambda: hf.model.norm
    )()
    eps, centred_norm = 1e-6 if family in ("llama", "qwen2_moe") else 1e-5, family in ("gpt2", "olmo")
    # of a mixture of experts the last with neurons: what the experts behind it write stays as it was
    last = 0 if family == "qwen2_moe" else len(one.model.blocks) - 1
    kept = {}
    hooks = ablate(NeuronSet([last] * 3, [0, 7, 20]), how="zero", positions="prompt")
    for text in TEXTS:
        with torch.no_grad():
            intact = one.class_logits([text])
            capture = [
                ("ln_final.hook_in", lambda act, hook: kept.update(x=act[0, -1])),
                (f"blocks.{last}.mlp.hook_post", lambda act, hook: kept.update(a=act[0, -1])),
            ]
            one.run_with_hooks([text], capture)
            write = -kept["a"][[0, 7, 20]] @ one.model.blocks[last].mlp.W_out[[0, 7, 20]]
            centred = kept["x"] - (kept["x"].mean() if centred_norm else 0)
            moved = write - (write.mean() if centred_norm else 0)
            hidden = moved / (centred.square().mean() + eps).sqrt() * getattr(norm, "weight", 1)
            expected = intact[0] + hidden @ one.model.W_U[:, one.label_ids]
        [direct] = direct_logits(one, [text], intact, [hooks])
        torch.testing.assert_close(direct[0], expected, rtol=1e-4, atol=1e-5)
        assert (direct - intact).abs().max() > 1e-3


def frozen_run(one, text, hooks):
    """Class logits with the hooks while all later attention and MLP outputs and norm scales are the intact run's."""
    layers = range(len(one.model.blocks))
    scales = [name for name in one.model.hook_dict if name.endswith(".hook_scale")]
    names = [f"blocks.{layer}.{part}.hook_out" for layer in layers for part in ("attn.o", "mlp.out")]
    intact = {}

    def keep(name):
        return name, lambda act, hook: intact.update({name: act.clone()})

    def put(name):
        return name, lambda act, hook: intact[name]

    def look(layer, edit):
        def note(act, hook):
            intact[layer] = (edit(act, hook=hook) - act) @ one.model.blocks[layer].mlp.W_out

        return f"blocks.{layer}.mlp.hook_post", note

    looks = [look(layer, edit) for layer, (_, edit) in enumerate(hooks)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A forward hook edited")
        plain = one.class_logits([text], [*map(keep, [*scales, *names]), *looks])
        total = torch.zeros_like(plain)
        for layer in layers:  # one layer's change at a time: the effects add up
            here = f"blocks.{layer}.mlp.out.hook_out"
            write = (here, lambda act, hook, layer=layer, here=here: intact[here] + intact[layer])
            rest = [put(name) for name in [*scales, *names] if name != here]
            total += one.class_logits([text], [*rest, write]) - plain
    return plain + total


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_it_is_the_run_with_everything_later_frozen_by_hooks(family):
    one = prompted(family, torch.float64)
    neurons = NeuronSet([0, 0, 1, 1], [1, 5, 3, 7])
    # a softcap and a masked-LM head's own transform bend: they count with their slope, so the change is small
    bends = {"gemma2": 1e-2, "bert": 1e-4, "roberta": 1e-4}  # Gemma's norms round in float32
    hooks = ablate(neurons, how=Noise(bends.get(family, 1.0), absolute=True), positions="prompt")
    with torch.no_grad():
        intact = one.class_logits(TEXTS[:1])
    [direct] = direct_logits(one, TEXTS[:1], intact, [hooks])
    change = direct - intact
    expected = frozen_run(one, TEXTS[0], hooks) - intact
    torch.testing.assert_close(change, expected, rtol=1e-2 if family in bends else 1e-6, atol=1e-9)
    assert change.abs().max() > (1e-7 if family in bends else 1e-3)


def test_a_read_out_that_bends_behind_the_last_residual_is_refused():
    one = prompted("modernbert_decoder")  # its head has a norm and an activation of its own
    intact = one.class_logits(TEXTS).detach()
    with pytest.raises(ValueError, match=r"no direct effects in .*ModernBertDecoder.*measure total effects"):
        direct_logits(one, TEXTS, intact, [ablate(NeuronSet([0], [3]), positions="prompt")])


def test_what_half_precision_rounds_off_is_told():
    one = prompted("llama", torch.bfloat16)
    intact = one.class_logits(TEXTS).detach()
    with pytest.warns(
        UserWarning, match=r"leave 0\.0\d+ of what the MLPs of .* unexplained: its numbers are bfloat16"
    ):
        direct_logits(one, TEXTS, intact, [ablate(NeuronSet([0], [3]), positions="prompt")])


def test_direct_effects_do_not_depend_on_the_batches():
    one = prompted("llama")
    intact = one.class_logits(TEXTS).detach()
    hooks = [ablate(NeuronSet([0, 1], [3, 7]), how=Noise(0.5, absolute=True), positions="prompt")]
    alone, together = (
        direct_logits(prompted("llama", batch_size=n), TEXTS, intact, hooks)[0] for n in (1, 3)
    )
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
