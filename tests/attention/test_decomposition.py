"""Decomposition of pre-activations: the parts sum to the whole, and planted heads are named."""

import families
import planted
import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, SoftPrompt
from tl_skillneurons.attention import decompose

NEURONS = NeuronSet([1, 0, 1], [3, 5, 40])
TEXT = ["the film was very good"]
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "stablelm")


def prompt(family):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement="prefix" if family in tiny.BIDIRECTIONAL else "suffix")


@pytest.mark.parametrize(
    ("family", "projection"),
    [*((f, "pre") for f in tiny.CONFIGS), *((f, "up") for f in GATED)],
)
def test_the_parts_sum_to_the_pre_activation_in_float64(family, projection):
    model = tiny.kept(family, dtype=torch.float64)
    parts = decompose(model, prompt(family), TEXT, NEURONS, projection=projection)
    n_positions = 4 if family in tiny.BIDIRECTIONAL else 3
    assert parts.total.shape == (1, n_positions, 3)
    scale = parts.total.abs().max()
    assert parts.remainder.abs().max() < 1e-9 * scale
    torch.testing.assert_close(parts.sources.sum(-1), parts.heads, rtol=1e-6, atol=1e-7)
    assert parts.heads[:, :, 0].abs().max() > 1e-3  # there is something to explain


@pytest.mark.parametrize("family", ["olmo", "nanochat", "gemma4", "youtu", "bitnet", "nemotron"])
def test_norms_without_weights_or_hook_points_and_latent_heads_leave_nothing_unexplained(family):
    model = families.bridge(family, dtype=torch.float64)
    told = family not in (
        "gemma4",
        "bitnet",
    )  # whose values or heads pass a norm before the output projection
    parts = decompose(model, prompt(family), TEXT, NEURONS, by_source=told)
    assert parts.unexplained < 1e-9
    assert parts.heads[:, :, 0].abs().max() > 1e-3
    if not told:
        with pytest.raises(ValueError, match="use by_source=False"):
            decompose(model, prompt(family), TEXT, NEURONS)


def test_what_neither_heads_nor_mlps_wrote_is_told():
    model = tiny.bridge("llama")
    more = lambda act, hook: act + 0.5 * act.square()  # noqa: E731
    model.hook_dict["blocks.1.hook_in"].add_hook(more, is_permanent=True)
    with pytest.warns(UserWarning, match=r"the parts leave \d.* of the activations of .* unexplained"):
        parts = decompose(model, prompt("llama"), TEXT, NEURONS)
    assert parts.unexplained > 1e-3 and "of the largest pre-activation" in repr(parts)


def test_what_half_precision_rounds_off_is_told():
    model = tiny.kept("llama", dtype=torch.bfloat16)
    with pytest.warns(
        UserWarning, match=r"the parts leave 0\.00\d+ of the activations .*: its numbers are bfloat16"
    ):
        decompose(model, prompt("llama"), TEXT, NEURONS, projection="post")


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_parts_do_not_depend_on_the_batch_and_padding_moves_nothing(family):
    model, own = tiny.kept(family), prompt(family)
    texts = [*TEXT, "a dull plot and a slow scene but not bad"]
    together = decompose(model, own, texts, NEURONS)
    alone = decompose(model, own, TEXT, NEURONS)
    for name in ("embed", "heads", "mlps", "bias", "total"):
        torch.testing.assert_close(getattr(together, name)[:1], getattr(alone, name), rtol=1e-4, atol=1e-5)
    padding = together.tokens.is_padding[0]
    assert padding.any() and (together.sources[0][..., padding] == 0).all()
    torch.testing.assert_close(together.sources[0][..., ~padding], alone.sources[0], rtol=1e-4, atol=1e-5)
    assert together.remainder.abs().max() < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3", "bloom"])
def test_what_is_kept_of_a_text_gives_the_parts_that_running_it_gives(family):
    model, texts = tiny.bridge(family), [*TEXT, "a dull plot and a slow scene but not bad"]
    kept = decompose(model, prompt(family), texts, NEURONS)
    model.hook_dict["blocks.0.hook_in"].add_hook(lambda act, hook: act)  # somebody else's: all of it runs
    whole = decompose(model, prompt(family), texts, NEURONS)
    for name in ("embed", "heads", "sources", "mlps", "bias", "total"):
        torch.testing.assert_close(getattr(kept, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_the_planted_heads_write_the_label_into_the_planted_neurons_and_no_other_head_does():
    clean, corrupted = zip(*planted.twins(), strict=True)
    parts = [
        decompose(planted.model(torch.float64), planted.prompt(), [text], planted.NEURONS, projection="up")
        for text in (clean[0], corrupted[0])
    ]
    change = (parts[0].heads - parts[1].heads)[0].abs().mean(0)  # [neuron, layer, head]
    for neuron, (layer, _) in enumerate(planted.NEURONS):
        named = {(at, h) for at, h in planted.HEADS if at <= layer}
        for head in ((at, h) for at in range(planted.N_LAYERS) for h in range(planted.N_HEADS)):
            value = change[neuron, head[0], head[1]]
            assert value > 0.1 if head in named else value < 0.01
    where = parts[0].sources[0, -1, 0][planted.HEADS[0]].abs().argmax()
    words = clean[0].split()
    assert int(where) == 1 + words.index("good" if "good" in words else "bad")  # after the BOS


def test_the_model_is_left_as_it_was():
    model = tiny.kept("llama")
    flags = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        first = decompose(model, prompt("llama"), TEXT, NEURONS)
    assert not any(t.requires_grad for t in (first.embed, first.heads, first.mlps, first.bias, first.total))
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not any(h for point in model.hook_dict.values() for h in point.fwd_hooks if not h.is_permanent)


def test_without_sources_heads_are_the_same():
    model = tiny.kept("llama")
    whole = decompose(model, prompt("llama"), TEXT, NEURONS)
    heads = decompose(model, prompt("llama"), TEXT, NEURONS, by_source=False)
    assert heads.sources is None and torch.equal(heads.heads, whole.heads)
    assert heads.remainder.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("neurons", "options", "message"),
    [
        (NeuronSet([0], [0], n_layers=9, d_mlp=48), {}, "must belong to one model"),
        (NeuronSet([], []), {}, "at least one neuron"),
        (NEURONS, {"projection": "gate"}, "projection must be one of"),
        (NEURONS, {"projection": "up"}, "its MLP has no gate"),
    ],
)
def test_what_makes_no_sense_is_refused(neurons, options, message):
    with pytest.raises(ValueError, match=message):
        decompose(tiny.kept("gpt2"), prompt("gpt2"), TEXT, neurons, **options)


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch.inference_mode"):
        decompose(tiny.kept("gpt2"), prompt("gpt2"), TEXT, NEURONS)


def test_a_table_has_every_part_which_sum_to_the_whole():
    parts = decompose(tiny.kept("gpt2"), prompt("gpt2"), TEXT, NEURONS)
    frame = parts.to_dataframe()
    of_one = frame[(frame.neuron_layer == 0) & (frame.neuron_index == 5)].set_index("part").contribution
    assert of_one.drop("total").sum() == pytest.approx(of_one["total"], abs=1e-6)
    assert of_one["total"] == pytest.approx(float(parts.total[0, :, 1].mean()))
    assert len(frame) == 3 * (1 + 2 * 4 + 2 + 1 + 1 + 1) and set(frame.text) == {0}
    assert repr(parts).startswith(
        "PreActivationParts(projection='pre', n_texts=1, n_prompt_positions=3, n_neurons=3"
    )
    assert "remainder" in parts._repr_html_()
