"""The last MLP at the read-out position alone: where it gives the same logits, and where it can't."""

import pytest
import tiny
import torch
from torch.overrides import TorchFunctionMode

import tl_skillneurons as skn


class RowsThrough(TorchFunctionMode):
    """How many rows are multiplied with ``weight``, call by call, seen without any hook or module being touched."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.rows = weight, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = [one for one in args if isinstance(one, torch.Tensor)]
        if function in (torch.addmm, torch.nn.functional.linear) and any(one is self.weight for one in given):
            result = function(*args, **(kwargs or {}))
            self.rows.append(result[..., 0].numel())
            return result
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "bert", "roberta"])
def test_the_last_mlp_runs_at_the_readout_alone_with_the_same_logits(family):
    model = tiny.bridge(family)
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    soft = skn.SoftPrompt(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), placement=placement)
    prompted = skn.PromptedModel(model, soft, {0: "negative", 1: "positive"})
    assert prompted.last_mlp is not None
    widths, texts = [], ["good film", "the plot was very slow"]
    with RowsThrough(model.blocks[1].mlp.out.weight) as through:  # hooks of others make every position run
        narrow = prompted.class_logits(texts)
    assert through.rows == [len(texts)]
    watch = [("blocks.1.mlp.hook_post", lambda act, hook: widths.append(act.shape[1]))]
    whole = prompted.class_logits(texts, watch)  # with hooks of others every position runs
    torch.testing.assert_close(narrow, whole, atol=1e-5, rtol=0)
    assert widths == [prompted.tokens(texts).ids.shape[1]]


def test_a_layer_that_reshapes_its_mlps_output_runs_whole():
    model = tiny.bridge("opt")
    soft = skn.SoftPrompt(torch.randn(3, 32), placement="suffix")
    assert skn.PromptedModel(model, soft, {0: "negative", 1: "positive"}).last_mlp is None
