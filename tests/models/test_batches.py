"""Batches by token budget, and what happens when one runs out of memory."""

import pytest
import tiny
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons.models.batches import batch_tokens_on, length_batches, padding, run_batches
from tl_skillneurons.prompts.run import RunOptions

LENGTHS = [3, 9, 4, 4, 8, 1, 30]


def test_every_example_stands_in_one_batch_and_none_exceeds_its_tokens():
    batches = length_batches(LENGTHS, 16)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches == [[6], [1], [4, 2], [3, 0, 5]]  # the longest alone exceeds the budget and still runs
    assert all(len(b) * max(LENGTHS[i] for i in b) <= 16 for b in batches[1:])
    assert length_batches(LENGTHS, 16, 2) == [[6], [1], [4, 2], [3, 0], [5]]
    assert length_batches(LENGTHS, None, 3) == [[6, 1, 4], [2, 3, 0], [5]]
    assert length_batches([], 16) == []


def test_padding_is_what_a_batch_holds_beyond_its_examples():
    assert padding(LENGTHS, [[6], [1], [4, 2], [3, 0, 5]]) == {"n_batches": 4, "n_tokens": 67, "n_padding": 8}
    assert padding([5, 5], [[0, 1]])["n_padding"] == 0


def test_an_accelerator_gets_larger_batches_than_a_cpu():
    assert batch_tokens_on("cuda:1") > batch_tokens_on(torch.device("cpu"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_a_batch_that_runs_out_of_memory_is_halved_and_the_size_that_worked_is_kept(error):
    tried, done = [], []

    def run(batch):
        tried.append(len(batch))
        if len(batch) > 3:
            raise error
        done.extend(batch)

    run_batches([list(range(8)), list(range(8, 16)), [16, 17]], run)
    assert sorted(done) == list(range(18))
    assert tried == [8, 4, *[2] * 8, 2]  # once at each size that failed, never again


def test_other_errors_and_one_example_that_is_too_much_are_raised():
    def too_much(batch):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run_batches([[0, 1]], too_much)
    tried = []

    def wrong(batch):
        tried.append(batch)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_batches([[0, 1]], wrong)
    assert tried == [[0, 1]]


@pytest.mark.parametrize(
    "options", [{"batch_tokens": 0}, {"batch_size": 0}, {"batch_size": 2.5}, {"batch_tokens": True}]
)
def test_sizes_that_are_none_are_refused(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        length_batches([1, 2], **options)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_scores_are_the_same_when_batches_run_out_of_memory_halfway_through_the_layers(family):
    model, task = tiny.bridge(family, dtype=torch.float32), tiny.task()
    placement = "prefix" if family == "bert" else "suffix"
    prompt = skn.SoftPrompt(
        torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), placement=placement
    )
    expected = skn.score_neurons(model, prompt, task, run=RunOptions(batch_size=4, progress=False))

    failed = []

    def scarce(act, hook):
        if len(act) > 4:
            failed.append(len(act))
            raise torch.OutOfMemoryError("out of memory")

    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", scarce)]):  # the first layer was seen by then
        found = skn.score_neurons(model, prompt, task, run=RunOptions(batch_size=16, progress=False))
    assert failed == [16, 8, 16, 8]  # once in each role
    assert torch.equal(found.correct, expected.correct)
    torch.testing.assert_close(found.baseline, expected.baseline, atol=1e-6, rtol=0)


def test_scores_say_how_much_was_padding():
    model, task = tiny.bridge("llama"), tiny.task()
    prompt = skn.SoftPrompt(torch.randn(3, 32), placement="suffix")
    scores = skn.score_neurons(model, prompt, task, run=RunOptions(batch_size=1, progress=False))
    batches = scores.provenance["batches"]
    assert batches["baseline"]["n_batches"] == task.n_examples["baseline"]
    assert batches["baseline"]["n_padding"] == 0 == batches["select"]["n_padding"]
    whole = skn.score_neurons(model, prompt, task, run=QUIET).provenance["batches"]["select"]
    assert whole["n_batches"] == 1 and whole["n_padding"] > 0
