"""A pruned model equals the full one with the dropped neurons held by hooks, in every family."""

import families
import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.models.pruning import widths

TEXTS = ["the film was good", "a dull plot and a bad cast", "not slow but very quick music"]


def prompt_of(family, n=3):
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    embedding = 0.5 * torch.randn(n, 32, generator=torch.Generator().manual_seed(0))
    return skn.SoftPrompt(embedding, placement=placement)


def shape_of(model):
    return len(model.blocks), skn.models.sites.neuron_shape(model)[1]


@pytest.mark.parametrize("family", [*tiny.CONFIGS, "falcon", "lfm2", "modernbert_decoder", "youtu"])
def test_it_is_the_model_with_the_dropped_neurons_held(family):
    model = families.bridge(family)
    n_layers, d_mlp = shape_of(model)
    keep = skn.NeuronSet([0, 0, 0, 1], [5, 2, d_mlp - 1, 7])
    values = torch.randn(n_layers, d_mlp, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = skn.prune(model, keep, values)
    assert widths(small) == [3, 1, 0][:n_layers] and widths(model) == [d_mlp] * n_layers
    words = {0: "negative", 1: "positive"}
    hooks = skn.ablate(keep.complement(n_layers, d_mlp), how="mean", values=values)
    with torch.no_grad():
        expected = skn.PromptedModel(model, prompt_of(family), words).class_logits(TEXTS, hooks)
        found = skn.PromptedModel(small, prompt_of(family), words).class_logits(TEXTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    n_small, n_whole = (sum(p.numel() for p in m.parameters()) for m in (small, model))
    assert n_small < n_whole
    assert all(not p.requires_grad for p in small.parameters()) and not small.training


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_a_layer_may_keep_nothing_or_be_spared(family):
    model = tiny.bridge(family)
    n_layers, d_mlp = shape_of(model)
    values = torch.randn(n_layers, d_mlp, generator=torch.Generator().manual_seed(1))
    words = {0: "negative", 1: "positive"}
    small = skn.prune(model, skn.NeuronSet([], []), values, layers=[1])
    assert widths(small) == [d_mlp, 0]
    dropped = skn.NeuronSet([1] * d_mlp, list(range(d_mlp)))
    with torch.no_grad():
        hooks = skn.ablate(dropped, how="mean", values=values)
        expected = skn.PromptedModel(model, prompt_of(family), words).class_logits(TEXTS, hooks)
        found = skn.PromptedModel(small, prompt_of(family), words).class_logits(TEXTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_prompt_is_tuned_on_the_smaller_model_and_its_hooks_show_its_widths(family):
    model = tiny.bridge(family)
    n_layers, d_mlp = shape_of(model)
    small = skn.prune(model, skn.NeuronSet([0, 1, 1], [3, 7, 9]), torch.zeros(n_layers, d_mlp))
    task = tiny.task()
    settings = {"n_virtual_tokens": 2, "n_steps": 3, "seeds": [0], "run": skn.RunOptions(progress=False)}
    with pytest.warns(UserWarning, match="the prompt of seed 0"):
        [prompt] = skn.fit_soft_prompts(small, task, **settings)
    with prompt.attached(small) as virtual:
        tokens = torch.cat([torch.tensor([[1, 6, 7]]), virtual.ids[None]], dim=1)
        with torch.no_grad():
            _, cache = small.run_with_cache(tokens)
    assert [cache[f"blocks.{layer}.mlp.hook_post"].shape[-1] for layer in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("keep", "values", "layers", "message"),
    [
        (([2], [0]), torch.zeros(2, 48), None, r"layer must be in \[0, 2\)"),
        (([0], [0]), torch.zeros(2, 47), None, r"\[layer, neuron\] = \[2, 48\] of this model, got \[2, 47\]"),
        (([0], [0]), torch.full((2, 48), float("nan")), None, "values must be finite"),
        (([0], [0]), torch.zeros(2, 48), [2], r"layers must be in \[0, 2\), got 2"),
        (([], []), torch.zeros(2, 48), None, "nothing would be kept in any layer"),
    ],
)
def test_what_cannot_be_pruned_is_refused(keep, values, layers, message):
    with pytest.raises(ValueError, match=message):
        skn.prune(tiny.bridge("gpt2"), skn.NeuronSet(*keep), values, layers=layers)


def test_gpt1_is_pruned_and_takes_three_tokens_as_it_takes_others():
    """In padded batches TransformerLens' GPT-1 loses its causal mask, so prompts are refused; the model runs."""
    model = families.bridge("gpt1")
    values = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    keep = skn.NeuronSet([0, 1], [5, 7])
    hooks = skn.ablate(keep.complement(2, 128), how="mean", values=values)
    for ids in (torch.tensor([[1, 6, 7]]), torch.tensor([[1, 6, 7, 8, 9]])):
        with torch.no_grad():
            expected = model.run_with_hooks(ids, fwd_hooks=hooks)
            torch.testing.assert_close(skn.prune(model, keep, values)(ids), expected, rtol=0, atol=2e-5)


def test_an_mlp_that_normalises_its_neurons_together_is_refused():
    model = families.bridge("bitnet")
    with pytest.raises(ValueError, match=r"layer 0 .*BitNet.* can't be pruned: .*ffn_sub_norm.*by ablate"):
        skn.prune(model, skn.NeuronSet([0], [3]), torch.zeros(2, 48))


def test_a_smaller_model_that_is_not_the_whole_one_with_neurons_held_is_refused():
    model = tiny.bridge("llama")
    bend = lambda act, hook: act * act.mean(-1, keepdim=True)  # noqa: E731
    model.hook_dict["blocks.0.mlp.hook_post"].add_hook(bend, is_permanent=True)
    with pytest.raises(ValueError, match=r"smaller one's logits are off by .* hold neurons by ablate"):
        skn.prune(model, skn.NeuronSet([0], [3]), torch.ones(2, 48), layers=[0])


def on_disk(family, folder):
    tiny.hf_model(family, 0, torch.float32).save_pretrained(folder)
    tiny.tokenizer(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_a_saved_model_comes_back_equal_from_its_widths_and_the_base_models_config(family, tmp_path):
    model = tiny.bridge(family)
    n_layers, d_mlp = shape_of(model)
    values = torch.randn(n_layers, d_mlp, generator=torch.Generator().manual_seed(1))
    small = skn.prune(model, skn.NeuronSet([0, 0, 1], [5, 2, 7]), values)
    path = skn.models.save_pruned(small, tmp_path / "small.safetensors")
    base = on_disk(family, tmp_path / "base")
    back = skn.models.load_pruned(path, base)
    assert widths(back) == [2, 1] and not back.training
    assert all(not p.requires_grad for p in back.parameters())
    ids = torch.tensor([[1, 6, 7, 8, 9], [1, 9, 8, 7, 5]])
    with torch.no_grad():
        torch.testing.assert_close(back(ids), small(ids), rtol=0, atol=1e-6)
    assert path.stat().st_size < sum(4 * t.numel() for t in model.state_dict().values()) + 20_000


def test_a_base_of_another_shape_is_refused(tmp_path):
    small = skn.prune(tiny.bridge("bloom"), skn.NeuronSet([0], [5]), torch.zeros(2, 128))
    path = skn.models.save_pruned(small, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"\[layer, neuron\] = \[2, 128\], .* has \[2, 48\]; give the model"):
        skn.models.load_pruned(path, on_disk("gpt2", tmp_path / "base"))


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "opt", "gpt_neox", "phi", "gpt_neo", "llama"])
def test_equal_widths_go_into_a_hugging_face_folder(family, tmp_path):
    model = tiny.bridge(family)
    n_layers, d_mlp = shape_of(model)
    values = torch.randn(n_layers, d_mlp, generator=torch.Generator().manual_seed(1))
    keep = skn.NeuronSet([0, 0, 0, 0, 1, 1, 1, 1], [5, 2, 8, 9, 7, 1, 2, 3])
    small = skn.prune(model, keep, values)
    state = torch.get_rng_state()
    folder = skn.models.export_model(small, tmp_path / "out")
    assert torch.equal(state, torch.get_rng_state()) and [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        skn.models.export_model(small, folder)
    back = type(tiny.hf_model(family, 0, torch.float32)).from_pretrained(folder).eval()
    ids = torch.tensor([[1, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, small(ids), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in back.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("family", "index", "message"),
    [
        ("gpt2", [0, 1], r"one width for all layers, this model has \[0, 2\]"),
        ("gemma2", None, "gemma2 has no place for an output bias in the MLP"),
    ],
)
def test_what_hugging_faces_format_cannot_hold_is_refused_with_the_reason(family, index, message, tmp_path):
    keep = skn.NeuronSet([0, 0], index) if index else skn.NeuronSet([0, 1], [3, 3])
    small = skn.prune(tiny.bridge(family), keep, torch.zeros(2, 48))
    with pytest.raises(ValueError, match=message):
        skn.models.export_model(small, tmp_path / "out")


def test_the_input_cache_serves_the_smaller_model():
    model = tiny.bridge("llama")
    small = skn.prune(model, skn.NeuronSet([0, 1, 1], [3, 7, 9]), torch.ones(2, 48))
    words = {0: "negative", 1: "positive"}
    with torch.no_grad():
        plain = skn.PromptedModel(small, prompt_of("llama"), words).class_logits(TEXTS)
        cached = skn.PromptedModel(
            small, prompt_of("llama"), words, run=skn.RunOptions(cache=skn.InputCache(small))
        )
        first, again = cached.class_logits(TEXTS), cached.class_logits(TEXTS)
    torch.testing.assert_close(first, plain, rtol=0, atol=1e-5)
    assert torch.equal(first, again)
