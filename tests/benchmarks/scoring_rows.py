"""The rows about scoring and ablating."""

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import measure
import peers
import torch
import transformers
from datasets import Dataset
from measure import Measured
from setups import QUIET, Setting, batches_as_scored, bridge, random_prompts, task_of, untouched

import tl_skillneurons as skn
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.models.verification import SWITCH
from tl_skillneurons.prompts.positions import PromptedTokens

ATTENTION = {"default": {}, "eager": {"attn_implementation": "eager"}}


def scoring_floor(setting: Setting) -> Measured:
    """Scoring against nothing but the encoder's own forward passes."""
    sizes = setting.sizes
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=sizes.n_baseline, select=sizes.n_select)
    [prompt] = random_prompts(model, 1, 16)
    batches = _batches_of_both_roles(model, prompt, task)
    soft = prompt.embedding.detach()
    encoder, details = _fastest_attention(
        lambda options: untouched("minilm", transformers.AutoModel, add_pooling_layer=False, **options),
        lambda encoder: peers.run_encoder(encoder, batches[:: max(1, len(batches) // 8)], soft),
    )
    skn.score_neurons(model, prompt, task.limit(train=8, select=8), run=QUIET)
    measured = measure.paired(
        lambda: skn.score_neurons(model, prompt, task, run=QUIET),
        lambda: peers.run_encoder(encoder, batches, soft),
        setting.n_pairs,
    )
    measured.details = details
    return measured


def scoring_verified(setting: Setting) -> Measured:
    """Scoring a model that was compared with the one inside it, against the same with nothing compared."""
    sizes = setting.sizes
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=sizes.n_baseline, select=sizes.n_select)
    [prompt] = random_prompts(model, 1, 16)

    def unverified() -> Any:
        with mock.patch.dict(os.environ, {SWITCH: "off"}):
            return skn.score_neurons(model, prompt, task, run=QUIET)

    skn.score_neurons(model, prompt, task.limit(train=8, select=8), run=QUIET)
    return measure.paired(
        lambda: skn.score_neurons(model, prompt, task, run=QUIET), unverified, setting.n_pairs
    )


def permutations(setting: Setting) -> Measured:
    """Scoring with a thousand label permutations against scoring without."""
    sizes = setting.sizes
    model = bridge("smollm2")
    task = task_of(setting.sst2, baseline=sizes.n_baseline, select=sizes.n_select)
    [prompt] = random_prompts(model, 1, 8)
    skn.score_neurons(model, prompt, task.limit(train=8, select=8), run=QUIET)
    return measure.paired(
        lambda: skn.score_neurons(model, prompt, task, n_permutations=1000, run=QUIET),
        lambda: skn.score_neurons(model, prompt, task, run=QUIET),
        setting.n_pairs,
    )


def scoring_stacked(setting: Setting) -> Measured:
    """Scoring against caching every activation first and then computing the paper's formula."""
    sizes = setting.sizes
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=sizes.n_baseline, select=sizes.n_select)
    [prompt] = random_prompts(model, 1, 16)
    few = task.limit(train=32, select=32)
    ours = skn.score_neurons(model, prompt, few, run=QUIET).correct[0]
    equal = (ours == peers.correct_from_stacks(model, prompt, few)).double().mean()
    measured = measure.paired(
        lambda: skn.score_neurons(model, prompt, task, run=QUIET),
        lambda: peers.correct_from_stacks(model, prompt, task),
        setting.n_pairs,
    )
    measured.details = {"share of equal counts on 32 + 32 examples": float(equal)}
    return measured


def scoring_five_prompts(setting: Setting) -> Measured:
    """Five prompts of a causal model against the bare decoder, which reads each text once."""
    sizes = setting.sizes
    model = bridge("smollm2")
    task = task_of(setting.sst2, baseline=sizes.n_baseline_causal, select=sizes.n_select_causal)
    prompts = random_prompts(model, 5, 8)
    batches = _batches_of_both_roles(model, prompts[0], task)
    softs = [prompt.embedding.detach() for prompt in prompts]
    decoder, details = _fastest_attention(
        lambda options: untouched("smollm2", transformers.AutoModelForCausalLM, **options).model,
        lambda decoder: peers.run_decoder(decoder, batches[:: max(1, len(batches) // 2)], softs),
        n_rounds=1,
    )
    skn.score_neurons(model, prompts, task.limit(train=8, select=8), run=QUIET)
    measured = measure.paired(
        lambda: skn.score_neurons(model, prompts, task, run=QUIET),
        lambda: peers.run_decoder(decoder, batches, softs),
        setting.n_pairs,
    )
    measured.details = details
    return measured


def _fastest_attention(
    load: Callable[[dict[str, Any]], Any], run: Callable[[Any], None], **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The peer with the attention that runs fastest on some batches, and how that was found."""
    loaded = {name: load(how) for name, how in ATTENTION.items()}
    attention, trial = measure.fastest({name: lambda m=m: run(m) for name, m in loaded.items()}, **options)
    return loaded[attention], {"attention of the peer": attention, "seconds to choose it": trial}


def _batches_of_both_roles(model: Any, prompt: skn.SoftPrompt, task: skn.Task) -> list[PromptedTokens]:
    prompted = skn.PromptedModel(model, prompt)
    return [
        batch
        for role in ("baseline", "select")
        for batch in batches_as_scored(prompted, task.split(role)["text"])
    ]


def ablation(name: str) -> Callable[[Setting], Measured]:
    """Class logits of 32 texts with 2% of every layer's neurons held, against the same without hooks."""

    def run(setting: Setting) -> Measured:
        model = bridge(name)
        task = task_of(setting.sst2)
        texts = list(task.split("select")["text"])[:32]
        [prompt] = random_prompts(model, 1, 16 if name == "minilm" else 8, readout=name == "minilm")
        prompted = skn.PromptedModel(model, prompt, task.label_words)
        n_layers, d_mlp = neuron_shape(model)
        generator = torch.Generator().manual_seed(0)
        mask = torch.zeros(n_layers, d_mlp, dtype=torch.bool)
        for layer in range(n_layers):
            mask[layer, torch.randperm(d_mlp, generator=generator)[: round(0.02 * d_mlp)]] = True
        values = 0.1 * torch.randn(n_layers, d_mlp, generator=generator)
        hooks = skn.ablate(skn.NeuronSet.from_mask(mask), how="mean", values=values)
        with torch.no_grad():
            for some in (hooks, []):
                prompted.class_logits(texts, some)
            measured = measure.paired(
                lambda: prompted.class_logits(texts, hooks),
                lambda: prompted.class_logits(texts),
                setting.n_pairs * setting.sizes.n_ablations,
                memory=False,
            )
        measured.details = {"neurons ablated": int(mask.sum()), "hooks": len(hooks)}
        return measured

    return run


def peak_of_scoring(name: str, n_examples: int, setting: Setting) -> dict[str, int | None]:
    """Score ``n_examples`` and tell the kernel's high-water mark from the start of scoring on.

    Few examples include the longest of the many, so that both meet the same largest batch; the data set
    itself is loaded whole in both.
    """
    sizes = setting.sizes
    model = bridge(name)
    n_select = sizes.n_many // 6
    task = task_of(setting.sst2, baseline=sizes.n_many - n_select, select=n_select)
    share = n_examples / sizes.n_many
    splits = {role: _longest_and_spread(task.split(role), share) for role in ("baseline", "select")}
    splits |= {"train": splits["baseline"], "report": task.split("report")}
    task = skn.Task(name=task.name, label_words=task.label_words, splits=splits, label_names=task.label_names)
    n_virtual = 16 if name == "minilm" else 4
    [prompt] = random_prompts(model, 1, n_virtual)
    before = measure.reset_peak()
    skn.score_neurons(model, prompt, task, run=QUIET)
    if before is None:
        raise RuntimeError("peak memory is read from /proc, which this system does not have")
    peak = measure.resident_bytes("VmHWM")
    return {"peak": peak, "peak above what stood before scoring": peak - before}


def _longest_and_spread(split: Dataset, share: float) -> Dataset:
    n = round(share * len(split))
    if n == len(split):
        return split
    order = sorted(range(len(split)), key=lambda i: -len(split[i]["text"]))
    n_longest = n // 2
    rest = order[n_longest:]
    spread = [rest[int(i * len(rest) / (n - n_longest))] for i in range(n - n_longest)]
    return split.select(order[:n_longest] + spread)
