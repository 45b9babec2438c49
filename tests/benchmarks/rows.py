"""The rows of the benchmark: what is measured, against what, and how good it should be.

Run as a script, it measures one row in a process of its own: ``python rows.py NAME SETTING.json RESULT.json``.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import measure
import peers
import torch
import transformers
from measure import Measured
from setups import (
    Setting,
    Sizes,
    batches_as_scored,
    bridge,
    quiet,
    random_prompts,
    task_of,
    untouched,
)

import tl_skillneurons as skn
from tl_skillneurons.prompted import text_token_ids
from tl_skillneurons.sites import neuron_shape
from tl_skillneurons.tuning_steps import batch_at, hold_back

BATCH_SIZE = 16
HELD_BACK = 0.02
ATTENTION = {"default": {}, "eager": {"attn_implementation": "eager"}}


@dataclass(frozen=True)
class Row:
    """One row: ``faster`` rows tell peer / ours and want at least ``aim``, others ours / peer and at most it."""

    what: str
    peer: str
    aim: float
    faster: bool
    measure: Callable[[Setting], Measured]


def scoring_floor(setting: Setting) -> Measured:
    """Scoring against nothing but the encoder's own forward passes."""
    sizes = setting.sizes
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=sizes.n_baseline, select=sizes.n_select)
    [prompt] = random_prompts(model, 1, 16)
    batches = _batches_of_both_roles(model, prompt, task)
    encoders = {
        name: untouched("minilm", transformers.AutoModel, add_pooling_layer=False, **options)
        for name, options in ATTENTION.items()
    }
    soft = prompt.embedding.detach()
    some = batches[:: max(1, len(batches) // 8)]
    attention, trial = measure.fastest(
        {name: lambda e=e: peers.run_encoder(e, some, soft) for name, e in encoders.items()}
    )
    encoder = encoders.pop(attention)
    encoders.clear()
    skn.score_neurons(model, prompt, task.limit(train=8, select=8), progress=False)
    measured = measure.paired(
        lambda: skn.score_neurons(model, prompt, task, progress=False),
        lambda: peers.run_encoder(encoder, batches, soft),
        setting.n_pairs,
    )
    measured.details = {"attention of the peer": attention, "seconds to choose it": trial}
    return measured


def scoring_stacked(setting: Setting) -> Measured:
    """Scoring against caching every activation first and then computing the paper's formula."""
    sizes = setting.sizes
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=sizes.n_baseline, select=sizes.n_select)
    [prompt] = random_prompts(model, 1, 16)
    few = task.limit(train=32, select=32)
    ours = skn.score_neurons(model, prompt, few, progress=False).correct[0]
    equal = (ours == peers.correct_from_stacks(model, prompt, few)).double().mean()
    measured = measure.paired(
        lambda: skn.score_neurons(model, prompt, task, progress=False),
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
    decoders = {
        name: untouched("smollm2", transformers.AutoModelForCausalLM, **options).model
        for name, options in ATTENTION.items()
    }
    softs = [prompt.embedding.detach() for prompt in prompts]
    some = batches[:: max(1, len(batches) // 2)]
    attention, trial = measure.fastest(
        {name: lambda d=d: peers.run_decoder(d, some, softs) for name, d in decoders.items()}, n_rounds=1
    )
    decoder = decoders.pop(attention)
    decoders.clear()
    skn.score_neurons(model, prompts, task.limit(train=8, select=8), progress=False)
    measured = measure.paired(
        lambda: skn.score_neurons(model, prompts, task, progress=False),
        lambda: peers.run_decoder(decoder, batches, softs),
        setting.n_pairs,
    )
    measured.details = {"attention of the peer": attention, "seconds to choose it": trial}
    return measured


def _batches_of_both_roles(model, prompt: skn.SoftPrompt, task: skn.Task) -> list:
    prompted = skn.PromptedModel(model, prompt)
    return [
        batch
        for role in ("baseline", "select")
        for batch in batches_as_scored(prompted, task.split(role)["text"])
    ]


def tuning_sst2(setting: Setting) -> Measured:
    """One prompt of SmolLM2 on SST-2 against PEFT."""
    sizes = setting.sizes
    return _against_peft(setting, setting.sst2, sizes.n_trained, sizes.n_peft_steps)


def tuning_imdb(setting: Setting) -> Measured:
    """One prompt of SmolLM2 on long texts against PEFT."""
    sizes = setting.sizes
    return _against_peft(
        setting, setting.imdb, sizes.n_trained_imdb, sizes.n_peft_steps_imdb, n_tokens=sizes.n_tokens_imdb
    )


def tuning_five_seeds(setting: Setting) -> Measured:
    """Five prompts of SmolLM2 on SST-2 against five runs of PEFT."""
    sizes = setting.sizes
    return _against_peft(setting, setting.sst2, sizes.n_trained, sizes.n_peft_steps_seeds, n_seeds=5)


def _against_peft(
    setting: Setting,
    source: str,
    n_trained: int,
    n_peft_steps: int,
    *,
    n_tokens: int | None = None,
    n_seeds: int = 1,
) -> Measured:
    n_virtual, n_steps = 8, setting.sizes.n_steps
    model = bridge("smollm2")
    task = task_of(source, baseline=n_trained)
    bare = skn.PromptedModel(model, None, task.label_words)
    texts, labels = _texts(model, task, bare.prepend_bos, n_tokens)
    batches = _batches(labels, n_steps, range(n_seeds))
    hf = untouched("smollm2", transformers.AutoModelForCausalLM)
    pad_id = model.tokenizer.pad_token_id or 0
    theirs = peers.PeftTuning(hf, n_virtual_tokens=n_virtual, label_ids=bare.label_ids, pad_id=pad_id)

    def ours() -> None:
        skn.fit_soft_prompts(
            model,
            task,
            n_virtual_tokens=n_virtual,
            seeds=range(n_seeds),
            n_steps=n_steps,
            batch_size=BATCH_SIZE,
            held_back=HELD_BACK,
            evaluate_every=n_steps,
            max_length=None if n_tokens is None else n_tokens + n_virtual,
            progress=False,
        )

    def steps_of_peft(chosen: Sequence[list[int]]) -> Callable[[], None]:
        def run() -> None:
            for batch in chosen:
                theirs.step([texts[i] for i in batch], labels[batch])

        return run

    sample = _typical(batches, texts, n_peft_steps)
    steps_of_peft(sample[:1])()  # warms up
    measured = Measured()
    scale = len(batches) / len(sample)
    for _ in range(setting.n_pairs):
        before, peak_before = measure.timed(steps_of_peft(sample[::2]))
        seconds, peak = measure.timed(ours)
        after, peak_after = measure.timed(steps_of_peft(sample[1::2]))
        measured.ours.values.append(seconds)
        measured.ours.peak_bytes.append(peak)
        measured.peer.values.append(scale * (before + after))
        measured.peer.peak_bytes.append(None if peak is None else max(peak_before, peak_after))
        measured.details.setdefault("seconds of PEFT's steps, before and after", []).append([before, after])
        measure.say_pair(measured, setting.n_pairs)
    measured.extrapolated = (
        f"PEFT ran {len(sample)} of {len(batches)} steps in each pair, half before ours and half after; "
        f"told is {scale:g} times that. The steps stand at even quantiles of the padded length, so that their "
        "mean length is that of all steps. Neither loading nor tokenizing counts for PEFT."
    )
    measured.details |= {
        "padded tokens of a step, mean of all": _mean_size(batches, texts),
        "padded tokens of a step, mean of those run": _mean_size(sample, texts),
        "not taken off ours": f"{round(HELD_BACK * len(labels))} held-back examples, evaluated at start and end",
    }
    return measured


def tuning_minilm(setting: Setting) -> Measured:
    """One prompt of MiniLM on SST-2 against a loop around an untouched ``BertForMaskedLM``; both run every step."""
    n_virtual, n_steps = 16, setting.sizes.n_steps
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=setting.sizes.n_trained)
    texts, labels = _texts(model, task, None, None)
    batches = _batches(labels, n_steps, [0])
    tokenizer = model.tokenizer
    label_ids = torch.tensor(tokenizer.convert_tokens_to_ids(["negative", "positive"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the head is random
        hf = untouched("minilm", transformers.AutoModelForMaskedLM)
    theirs = peers.MaskedTuning(hf, n_virtual_tokens=n_virtual, label_ids=label_ids, tokenizer=tokenizer)

    def ours() -> None:
        skn.fit_soft_prompts(
            model,
            task,
            n_virtual_tokens=n_virtual,
            n_steps=n_steps,
            batch_size=BATCH_SIZE,
            held_back=HELD_BACK,
            evaluate_every=n_steps,
            readout="linear",
            progress=False,
        )

    def peer() -> None:
        for batch in batches:
            theirs.step([texts[i] for i in batch], labels[batch])

    theirs.step([texts[i] for i in batches[0]], labels[batches[0]])  # warms up
    return measure.paired(ours, peer, setting.n_pairs)


def _texts(model, task: skn.Task, prepend_bos: bool | None, n_tokens: int | None):
    """Role train as token ids, cut, and its labels."""
    split = task.split("train")
    ids = text_token_ids(model, list(split["text"]), prepend_bos)
    return [row[:n_tokens] for row in ids], torch.tensor(split["label"])


def _batches(labels: torch.Tensor, n_steps: int, seeds: Sequence[int]) -> list[list[int]]:
    """The examples of every step that ``fit_soft_prompts`` takes."""
    trained, _ = hold_back(labels, HELD_BACK)
    return [batch_at(step, trained, BATCH_SIZE, seed) for seed in seeds for step in range(n_steps)]


def _padded_size(batch: list[int], texts: list[list[int]]) -> int:
    return len(batch) * max(len(texts[i]) for i in batch)


def _mean_size(batches: Sequence[list[int]], texts: list[list[int]]) -> float:
    return sum(_padded_size(batch, texts) for batch in batches) / len(batches)


def _typical(batches: list[list[int]], texts: list[list[int]], n: int) -> list[list[int]]:
    """``n`` steps at even quantiles of the padded size; every other one is half of them, as typical as the rest."""
    n = min(n, len(batches))
    ordered = sorted(batches, key=lambda batch: _padded_size(batch, texts))
    return [ordered[int((i + 0.5) * len(ordered) / n)] for i in range(n)]


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


_IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def importing(statement: str) -> Callable[[Setting], Measured]:
    """Seconds of one import, each in a Python of its own, after one of each that fills the disk's cache."""

    def seconds(code: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT.format(code)], check=True, stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout)

    def run(setting: Setting) -> Measured:
        measured = Measured()
        sides = [(measured.ours, statement), (measured.peer, "import transformer_lens")]
        for _, code in sides:
            seconds(code)
        n_pairs = setting.n_pairs * setting.sizes.n_imports
        for number in range(n_pairs):
            for side, code in sides if number % 2 == 0 else sides[::-1]:
                side.values.append(seconds(code))
            measure.say_pair(measured, n_pairs)
        return measured

    return run


def memory(name: str) -> Callable[[Setting], Measured]:
    """Peak resident memory of a whole process that scores many examples, against one that scores few."""

    def run(setting: Setting) -> Measured:
        sizes = setting.sizes
        measured = Measured(unit="bytes")
        for _ in range(setting.n_pairs):
            for side, n in ((measured.ours, sizes.n_many), (measured.peer, sizes.n_few)):
                answer = in_own_process(f"score-{name}-{n}", setting)
                side.values.append(answer["peak"])
                side.peak_bytes.append(answer["peak above what stood before scoring"])
            measure.say_pair(measured, setting.n_pairs)
        measured.details = {"examples": [sizes.n_many, sizes.n_few]}
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
    skn.score_neurons(model, prompt, task, progress=False)
    if before is None:
        raise RuntimeError("peak memory is read from /proc, which this system does not have")
    peak = measure.resident_bytes("VmHWM")
    return {"peak": peak, "peak above what stood before scoring": peak - before}


def _longest_and_spread(split, share: float):
    n = round(share * len(split))
    if n == len(split):
        return split
    order = sorted(range(len(split)), key=lambda i: -len(split[i]["text"]))
    n_longest = n // 2
    rest = order[n_longest:]
    spread = [rest[int(i * len(rest) / (n - n_longest))] for i in range(n - n_longest)]
    return split.select(order[:n_longest] + spread)


ROWS = {
    "scoring": Row(
        "scoring, MiniLM, 16 virtual tokens", "bare encoder, same batches", 1.10, False, scoring_floor
    ),
    "scoring-stacked": Row(
        "scoring, MiniLM, 16 virtual tokens", "run_with_cache, stack, formula", 4, True, scoring_stacked
    ),
    "scoring-prompts": Row(
        "scoring 5 prompts, SmolLM2, 8 virtual tokens",
        "bare decoder, KV cache of each text",
        1.15,
        False,
        scoring_five_prompts,
    ),
    "tuning": Row("tuning, SmolLM2, SST-2, 300 steps", "PEFT prompt tuning", 3, True, tuning_sst2),
    "tuning-imdb": Row(
        "tuning, SmolLM2, IMDB at 256 tokens, 300 steps", "PEFT prompt tuning", 12, True, tuning_imdb
    ),
    "tuning-seeds": Row(
        "tuning 5 seeds, SmolLM2, SST-2, 300 steps", "5 runs of PEFT", 5, True, tuning_five_seeds
    ),
    "tuning-minilm": Row(
        "tuning, MiniLM, SST-2, 300 steps", "inputs_embeds, BertForMaskedLM", 1.6, True, tuning_minilm
    ),
    "ablation-minilm": Row(
        "2% of neurons ablated, MiniLM, 32 texts", "no hooks", 1.05, False, ablation("minilm")
    ),
    "ablation-smollm2": Row(
        "2% of neurons ablated, SmolLM2, 32 texts", "no hooks", 1.05, False, ablation("smollm2")
    ),
    "import": Row(
        "import tl_skillneurons",
        "import transformer_lens",
        1.05,
        False,
        importing("import tl_skillneurons"),
    ),
    "import-names": Row(  # the package loads its modules when a name is first asked for
        "from tl_skillneurons import *",
        "import transformer_lens",
        1.05,
        False,
        importing("from tl_skillneurons import *"),
    ),
    "memory-minilm": Row("peak memory, scoring 5,000, MiniLM", "scoring 500", 1.05, False, memory("minilm")),
    "memory-smollm2": Row(
        "peak memory, scoring 5,000, SmolLM2", "scoring 500", 1.05, False, memory("smollm2")
    ),
}
"""The rows by name."""


def in_own_process(task: str, setting: Setting) -> dict:
    """What a fresh Python that runs :func:`main` on ``task`` hands back.

    Raises:
        RuntimeError: When it fails; its own message is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "setting.json", Path(folder) / "answer.json"
        given.write_text(json.dumps(asdict(setting)))
        done = subprocess.run([sys.executable, __file__, task, given, answer], stdout=sys.stderr)
        if done.returncode or not answer.exists():
            raise RuntimeError(f"{task} ended with status {done.returncode}")
        return json.loads(answer.read_text())


def main(task: str, given: str, answer: str) -> None:
    """Measure one row, or one side of a memory row (``score-MODEL-EXAMPLES``)."""
    values = json.loads(Path(given).read_text())
    setting = Setting(**{**values, "sizes": Sizes(**values["sizes"])})
    torch.set_num_threads(setting.n_threads)
    with quiet():
        if task.startswith("score-"):
            _, name, n_examples = task.split("-")
            result = peak_of_scoring(name, int(n_examples), setting)
        else:
            row = ROWS[task]
            measured = row.measure(setting)
            result = {**asdict(measured), "ratios": measure.ratios(measured, faster=row.faster)}
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
