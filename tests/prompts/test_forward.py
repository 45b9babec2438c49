"""The last MLP at the read-out position alone: where it gives the same logits, and where it can't."""

import pytest
import tiny
import torch

import tl_skillneurons as skn


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "bert", "roberta"])
def test_the_last_mlp_runs_at_the_readout_alone_with_the_same_logits(family, monkeypatch):
    model = tiny.bridge(family)
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    soft = skn.SoftPrompt(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), placement=placement)
    prompted = skn.PromptedModel(model, soft, {0: "negative", 1: "positive"})
    assert prompted.last_mlp is not None
    widths, texts = [], ["good film", "the plot was very slow"]
    projection = model.blocks[1].mlp.out.original_component
    forward = projection.forward  # not by a hook: hooks of others make every position run

    def watched(act, *args, **kwargs):
        widths.append(act.shape[1])
        return forward(act, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(projection, "forward", watched)
        narrow = prompted.class_logits(texts)
    assert widths == [1]
    watch = [("blocks.1.mlp.hook_post", lambda act, hook: widths.append(act.shape[1]))]
    whole = prompted.class_logits(texts, watch)  # with hooks of others every position runs
    torch.testing.assert_close(narrow, whole, atol=1e-5, rtol=0)
    assert widths[1:] == [prompted.tokens(texts).ids.shape[1]]


def test_a_layer_that_reshapes_its_mlps_output_runs_whole():
    model = tiny.bridge("opt")
    soft = skn.SoftPrompt(torch.randn(3, 32), placement="suffix")
    assert skn.PromptedModel(model, soft, {0: "negative", 1: "positive"}).last_mlp is None
