"""What heads write on average: a slow loop without padding, and the numbers that ablations take from it."""

import families
import pytest
import tiny
import torch

from tl_skillneurons import PromptedModel, RunOptions, SoftPrompt
from tl_skillneurons.attention import ablate_heads, head_outputs, mean_head_outputs
from tl_skillneurons.interventions import ClassMean, OtherClassMean

TEXTS = ["the film was good", "a dull plot and a slow scene but not bad", "music"]


def prompt(family="llama"):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement="prefix" if family in tiny.BIDIRECTIONAL else "suffix")


def test_heads_with_values_of_their_own_width_are_whole_heads():
    """Latent attention: 4 heads, values of 6 numbers, where TransformerLens shows 6 heads of 4."""
    model, untouched, own = families.bridge("youtu"), families.hf_model("youtu"), prompt()
    found = mean_head_outputs(model, own, TEXTS[:1])
    seen = []
    for layer in untouched.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    with torch.no_grad():
        embed = untouched.get_input_embeddings()(model.to_tokens(TEXTS[0]))
        untouched(inputs_embeds=torch.cat([embed, own.embedding[None]], dim=1))
    expected = torch.stack([z[0, -3:].mean(0).view(4, 6) for z in seen])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_ablating_a_head_with_values_of_its_own_width_zeroes_its_columns_in_the_untouched_model():
    model, untouched, own = families.bridge("youtu"), families.hf_model("youtu"), prompt()
    with torch.no_grad():
        untouched.model.layers[0].self_attn.o_proj.weight[:, 12:18] = 0  # head 2 of values of 6
        embed = untouched.get_input_embeddings()(model.to_tokens(TEXTS[0]))
        expected = untouched(inputs_embeds=torch.cat([embed, own.embedding[None]], dim=1)).logits
        found = PromptedModel(model, own).run_with_hooks(TEXTS[:1], ablate_heads([(0, 2)], how="zero"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "message"),
    [("lfm2", "layer 0 of .* has no attention heads"), ("gemma4", r"\[\[4, 8\], \[4, 512\]\]")],
)
def test_heads_that_are_missing_or_differ_from_layer_to_layer_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        mean_head_outputs(families.bridge(family), prompt(), TEXTS[:1])


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("positions", ["prompt", "text", "all"])
def test_mean_outputs_are_those_of_a_slow_loop_without_padding(family, positions):
    model, own = tiny.bridge(family), prompt(family)
    found = mean_head_outputs(model, own, TEXTS, positions=positions)
    prompted = PromptedModel(model, own)
    rows, kept = [], {}
    for text in TEXTS:
        with torch.no_grad():
            look = ("blocks.1.attn.o.hook_in", lambda act, hook: kept.update(act=act[0]))
            prompted.run_with_hooks([text], [look])
        tokens = prompted.tokens([text])
        where = {"prompt": tokens.is_prompt[0], "text": (tokens.is_text & ~tokens.is_special)[0]}.get(
            positions, slice(None)
        )
        rows.append(kept["act"][where])
    torch.testing.assert_close(found[1], torch.cat(rows).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["prompt", "text"])
def test_outputs_of_each_text_give_mean_spread_class_means_and_sizes(positions):
    prompted = PromptedModel(tiny.bridge("llama"), prompt(), run=RunOptions(batch_size=2))
    found = head_outputs(prompted, TEXTS, labels=[0, 1, 1], positions=positions)
    each = torch.stack(
        [mean_head_outputs(prompted.model, prompt(), [text], positions=positions) for text in TEXTS]
    ).double()
    flat = each.flatten(2)
    torch.testing.assert_close(found.activations, flat, rtol=1e-5, atol=1e-6)
    pooled = mean_head_outputs(prompted.model, prompt(), TEXTS, positions=positions)
    torch.testing.assert_close(found.mean, pooled.flatten(1), rtol=1e-5, atol=1e-6)
    expected = flat.std(0, correction=0).float()
    torch.testing.assert_close(found.std, expected, rtol=1e-4, atol=1e-6)
    by_class = torch.stack([flat[0], flat[1:].mean(0)]).float()
    torch.testing.assert_close(found.class_mean, by_class, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.size, each.norm(dim=-1).mean(0), rtol=1e-5, atol=1e-6)
    assert found.n_positions.tolist() == ([3, 3, 3] if positions == "prompt" else [4, 10, 1])  # without BOS
    assert head_outputs(prompted, TEXTS).class_mean is None


def test_a_class_without_an_example_has_no_mean_and_is_named():
    prompted = PromptedModel(tiny.bridge("llama"), prompt())
    found = head_outputs(prompted, TEXTS, labels=[0, 2, 2])
    for how in (ClassMean(), OtherClassMean()):
        with pytest.raises(ValueError, match=r"no example of class 1, .* every class from 0 to 2"):
            ablate_heads([(0, 1)], how=how, values=found, classes=[0])
    assert len(ablate_heads([(0, 1)], how="mean", values=found)) == 1  # which asks for no class
    one = ablate_heads(
        [(0, 1)], how=OtherClassMean(), values=head_outputs(prompted, TEXTS, labels=[0] * 3), classes=[0]
    )
    with pytest.raises(ValueError, match=r"the mean of class 0 alone"):
        prompted.run_with_hooks(TEXTS[:1], one)


def test_texts_are_cut_to_the_length_that_was_asked_for_or_tuned_with():
    model = tiny.bridge("llama")
    short = [" ".join(text.split()[:3]) for text in TEXTS]
    by_hand = mean_head_outputs(model, prompt(), short, positions="text")
    asked = mean_head_outputs(model, prompt(), TEXTS, positions="text", max_length=7)
    torch.testing.assert_close(asked, by_hand)
    tuned = SoftPrompt(prompt().embedding, placement="suffix", max_length=7)
    torch.testing.assert_close(mean_head_outputs(model, tuned, TEXTS, positions="text"), by_hand)


def test_what_is_not_there_is_refused():
    model = tiny.bridge("llama")
    with pytest.raises(ValueError, match="without a prompt there are no prompt positions"):
        mean_head_outputs(model, None, TEXTS)
    with pytest.raises(ValueError, match="positions must be one of"):
        mean_head_outputs(model, prompt(), TEXTS, positions="last")
