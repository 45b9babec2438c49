"""A copy shares nothing with its original, whatever functions, hooks and activations stand on the modules."""

import copy

import families
import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.models.copies import copy_model

IDS = torch.tensor([[1, 6, 7, 8, 9]])


@pytest.mark.parametrize("family", ["falcon", "falcon_alibi", "opt", "bert", "gpt2", "gpt1", "lfm2", "youtu"])
def test_each_part_of_a_copy_is_its_own(family):
    model = families.bridge(family)
    with torch.no_grad():
        before = model(IDS)
        copied = copy_model(model)
        last = copied(IDS)
        torch.testing.assert_close(last, before)
        for block in copied.blocks:
            weight = block.mlp.out.original_component.weight
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            now = copied(IDS)
            assert not torch.allclose(now, last)  # it runs its own MLP
            last = now
        for parameter in copied.original_model.parameters():
            parameter.zero_()
        assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("family", ["opt", "bert", "xglm"])
def test_a_hook_on_a_copys_mlp_fires_there_and_the_originals_stays_silent(family):
    model = families.bridge(family)
    copied, seen = copy_model(model), []
    model.hook_dict["blocks.0.mlp.hook_out"].add_hook(lambda act, hook: seen.append("original"))
    copied.hook_dict["blocks.0.mlp.hook_out"].add_hook(lambda act, hook: seen.append("copy"))
    copied(IDS)
    assert seen == ["copy"]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "bloom"])
def test_a_model_that_keeps_the_graph_of_its_last_run_is_pruned_and_shuffled_all_the_same(family):
    model = tiny.bridge(family)
    prompt = skn.SoftPrompt(0.1 * torch.ones(2, 32), placement="suffix")
    logits = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"}).class_logits(["good film"])
    assert logits.requires_grad
    shape = skn.models.sites.neuron_shape(model)
    small = skn.prune(model, skn.NeuronSet([0, 1], [3, 4]), torch.zeros(shape))
    assert skn.models.sites.neuron_widths(small) == [1, 1]
    shuffled = skn.models.shuffle_layers(model)
    assert torch.equal(shuffled.blocks[0].mlp.W_out, model.blocks[1].mlp.W_out)


def test_falcons_shuffled_layers_are_the_ones_that_run():
    model = families.bridge("falcon")
    shuffled = skn.models.shuffle_layers(model)
    hf_model = families.hf_model("falcon")
    hf_model.transformer.h = torch.nn.ModuleList(hf_model.transformer.h[::-1])
    with torch.no_grad():
        torch.testing.assert_close(shuffled(IDS), hf_model(IDS).logits)


def test_a_hook_that_holds_weights_is_copied_with_them():
    model = tiny.bridge("llama")
    scale = torch.nn.Parameter(torch.ones(32))
    model.hook_dict["blocks.0.mlp.out.hook_out"].add_hook(lambda act, hook: act * scale, is_permanent=True)
    copied = copy_model(model)
    with torch.no_grad():
        before = copied(IDS)
        scale.zero_()
        assert torch.equal(copied(IDS), before) and not torch.allclose(model(IDS), before)
    copied.reset_hooks(including_permanent=True)
    assert len(model.hook_dict["blocks.0.mlp.out.hook_out"].fwd_hooks) == 1


def test_a_copy_that_would_share_a_weight_is_refused():
    model = tiny.bridge("gpt2")

    class Held:  # a callable of somebody's, which nobody can look into
        def __init__(self, part):
            self.part = part

        def __deepcopy__(self, memo):
            return self

        def __call__(self, act, hook):
            return act + self.part.weight[0]

    held = Held(model.blocks[0].ln1.original_component)
    model.hook_dict["blocks.0.hook_in"].add_hook(held, is_permanent=True)
    with pytest.raises(ValueError, match=r"would share .*weight .*boot the model a second time"):
        copy_model(model)
    with pytest.raises(ValueError, match="would share"):
        skn.prune(model, skn.NeuronSet([0], [3]), torch.zeros(2, 48))
    copy.deepcopy(model)  # which says nothing
