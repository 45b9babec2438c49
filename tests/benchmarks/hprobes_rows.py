"""The rows beside hprobes: which neurons of a chat model foretell that its answer will be wrong?

Both sides get the same questions as the same tokens, predict the same labels (whether the letter is wrong), learn on
the same questions and are judged on the same others: hprobes' own split. hprobes (0.11) reads the size of each
neuron's part in its MLP's output at the last token before the answer, and fits an L1 logistic regression to all of
them; how many neurons it takes follows from its ``l1_C``. Ours ranks single neurons by AUC and counts votes of the best
``k`` (a rule each, as in the paper) or fits TransformerLens' probe to them. What is timed: from texts and a loaded
model to neurons, held-out AUROC and whatever each side says of luck (hprobes: one random set; ours: 1,000 label
permutations, intervals and p-values). Ablations come after, outside the time, for both sets with the same code, since
hprobes has no controls.
"""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import measure
import torch
import transformers
from measure import Measured
from setups import QUIET, Setting, bridge, questions_of, untouched
from torch import Tensor
from transformer_lens.tools.analysis.sparse_probing import SparseProbeConvergenceError, fit_sparse_probe

import tl_skillneurons as skn
from tl_skillneurons.interventions.controls import with_controls
from tl_skillneurons.stats.metrics import per_example

CUE = "\n\nAnswer:"  # hprobes' own
LETTERS = "ABCD"
HELD_OUT = 0.4
SIZES = (1, 4, 16, 64)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # of hprobes' ``l1_C``, whose default is 1


@dataclass(frozen=True)
class Split:
    """Which questions teach and which judge, and whether the answer to each is wrong."""

    train: Tensor
    held: Tensor
    wrong: Tensor


@dataclass
class Told:
    """How well something foretells wrong answers: the number of neurons, and its value for each held-out question."""

    n_neurons: int
    values: Tensor
    speak_for_wrong: list[tuple[int, int]] = field(default_factory=list)
    """hprobes calls those neurons found whose weight is positive."""


def foretelling(*, shuffled: bool, readout: str, ablate: bool) -> Callable[[Setting], Measured]:
    """Neurons that foretell wrong answers, beside hprobes.

    Args:
        shuffled: Whether the choices stand in an order of its own in each question. Where they don't, a model that
            always says the same letter is right about one topic, and a neuron that reads the topic foretells it.
        readout: How hprobes takes the answer: ``"both"`` is its default, which writes one after the first token's
            logits were read; ``"logits"`` writes none, its fastest way.
        ablate: Whether neurons are ablated afterwards.
    """

    def run(setting: Setting) -> Measured:
        from hprobes import HProbes  # the rows are skipped where it isn't installed

        sizes = setting.sizes
        asked = questions_of(setting.ag_news, sizes.n_asked, shuffled=shuffled)
        texts, gold = [one.text for one in asked], torch.tensor([one.right for one in asked])
        model = bridge("smollm2")
        words = {place: f" {letter}" for place, letter in enumerate(LETTERS)}
        prompted = skn.PromptedModel(model, None, words, chat=skn.tasks.Chat(assistant=CUE), run=QUIET)
        hf = untouched("smollm2", transformers.AutoModelForCausalLM)
        tokenizer = transformers.AutoTokenizer.from_pretrained(skn.packaged_model("smollm2", verbose=False))
        found: dict[str, Any] = {}
        cpu: dict[str, list[float]] = {"ours": [], "hprobes": []}

        def ours() -> None:
            start = time.process_time()
            logits, neurons = skn.prompts.answers_and_neurons(prompted, texts)
            split = split_as_hprobes((logits.argmax(1) != gold).long())
            found["ours"] = logits, neurons, split, discovered(neurons, texts, split, SIZES)
            cpu["ours"].append(time.process_time() - start)

        def theirs() -> None:
            start = time.process_time()
            probe = HProbes(hf, tokenizer, validation_split=HELD_OUT, readout=readout)
            rows = [
                {"question": one.text, "options": one.options, "answer": LETTERS[one.right]} for one in asked
            ]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                probe.fit(rows, prompt_fn=lambda row: row["question"])
                found["score"] = probe.score()
            found["probe"] = probe
            cpu["hprobes"].append(time.process_time() - start)

        warm_up(prompted, texts)
        measured = measure.paired(ours, theirs, 1)
        logits, neurons, own, ranked = found["ours"]
        probe = found["probe"]
        split = split_of(probe, texts, tokenizer)
        same = all(torch.equal(getattr(own, name), getattr(split, name)) for name in ("train", "held"))
        same = same and torch.equal(own.wrong[split.held], split.wrong[split.held])
        paths = path_of(probe)
        if not same:
            ranked = discovered(neurons, texts, split, SIZES)
        sizes_of_both = sorted({*SIZES, *(one.n_neurons for one in paths)} - {0})
        ours_told = told_by(neurons, texts, split, sizes_of_both, ranked[0])
        unsure = 1 - logits.double().softmax(1).amax(1)[split.held]
        wrong = split.wrong[split.held]
        sets = sets_of(paths, ranked[0], model) if ablate else {}
        measured.details = {
            "questions": {"train": len(split.train), "held out": len(split.held)},
            "answers": "".join(LETTERS[i] for i in logits.argmax(1).tolist()),
            "wrong": {"train": int(split.wrong[split.train].sum()), "held out": int(wrong.sum())},
            "rows of equal tokens": equal_tokens(prompted, texts, probe, tokenizer),
            "equal labels and split": same,
            "CPU seconds": cpu,
            "ratio of CPU seconds": cpu["hprobes"][0] / cpu["ours"][0],
            "hprobes": {
                "score()": found["score"],
                "n_neurons_": probe.n_neurons_,
                "by l1_C": [
                    {"l1_C": strength, "weights": one.n_neurons, "positive": len(one.speak_for_wrong)}
                    for strength, one in zip(STRENGTHS, paths, strict=True)
                ],
            },
            "ours": told_of_luck(ranked[0]),
            "AUROC": table_of(paths, ours_told, unsure, wrong),
        }
        for line in lines_of(measured.details):
            measure.say(line)
        measured.details["ablation"] = ablated(prompted, neurons, texts, gold, split, sets, sizes)
        for name, one in measured.details["ablation"].items():
            measure.say(f"  ablation, {name}: {one}")
        return measured

    return run


def warm_up(prompted: skn.PromptedModel, texts: Sequence[str]) -> None:
    """Both sides are imported, and the model is compared with the one inside it, before anything is timed."""
    _, neurons = skn.prompts.answers_and_neurons(prompted, texts[:8])
    split = Split(torch.arange(8), torch.arange(8), torch.arange(8) % 2)
    discovered(neurons, texts, split, (1,))


def sets_of(paths: Sequence[Told], scores: Any, model: Any) -> dict[str, skn.NeuronSet]:
    """The neurons that hprobes calls found, at the strongest penalty that leaves some, and as many of ours."""
    found = next((one.speak_for_wrong for one in paths if len(one.speak_for_wrong) > 1), None)
    if found is None:
        return {"ours": scores.top(max(SIZES), per="model")}
    return {
        "hprobes": skn.NeuronSet.from_pairs(found).of_model(model),
        "ours": scores.top(len(found), per="model"),
    }


def split_as_hprobes(wrong: Tensor) -> Split:
    """The split that hprobes makes of these labels."""
    from sklearn.model_selection import train_test_split

    rows = list(range(len(wrong)))
    train, held = train_test_split(rows, test_size=HELD_OUT, random_state=42, stratify=(1 - wrong).tolist())
    return Split(torch.tensor(sorted(train)), torch.tensor(sorted(held)), wrong)


def split_of(probe: Any, texts: Sequence[str], tokenizer: Any) -> Split:
    """The split that hprobes made, and its labels, by the questions' places."""
    asked = {in_chat(tokenizer, text): row for row, text in enumerate(texts)}
    wrong = torch.full((len(texts),), -1)
    for one in probe._predictions_:
        wrong[asked[one["prompt"]]] = int(not one["is_correct"])
    held = sorted(asked[prompt] for prompt in probe._val_prompts)  # as the rows of its features stand
    train = [row for row in range(len(texts)) if int(wrong[row]) >= 0 and row not in set(held)]
    if wrong[held].tolist() != probe._y_val.tolist():
        raise RuntimeError("hprobes' held-out questions stand in another order than its features")
    return Split(torch.tensor(train), torch.tensor(held), wrong)


def in_chat(tokenizer: Any, text: str) -> str:
    """A question as hprobes asks it."""
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + CUE


def equal_tokens(prompted: skn.PromptedModel, texts: Sequence[str], probe: Any, tokenizer: Any) -> int:
    """How many questions both sides read as the same tokens."""
    theirs = [probe._tokenize(in_chat(tokenizer, text))["input_ids"][0].tolist() for text in texts]
    ours = []
    for text in texts:
        tokens = prompted.tokens([text])
        ours.append(tokens.ids[0][tokens.attention_mask[0] > 0].tolist())
    return sum(a == b for a, b in zip(ours, theirs, strict=True))


def discovered(
    neurons: Tensor, texts: Sequence[str], split: Split, sizes: Sequence[int]
) -> tuple[Any, list[Any]]:
    """Our whole way: neurons ranked beside permuted labels, and the AUROC of the best ``k`` on other questions."""
    rows = split.train
    scores = skn.scores.score_activations(
        neurons[rows], split.wrong[rows], [texts[i] for i in rows], n_permutations=1000
    )
    told = told_by(neurons, texts, split, sizes, scores)
    wrong = split.wrong[split.held]
    return scores, [skn.stats.auroc(one.values, wrong) for of_kind in told.values() for one in of_kind]


def told_by(
    neurons: Tensor, texts: Sequence[str], split: Split, sizes: Sequence[int], scores: Any
) -> dict[str, list[Told]]:
    """What the vote of the best ``k`` neurons says of each held-out question, and what a probe of them does."""
    told: dict[str, list[Told]] = {"vote": [], "probe": []}
    for size in sizes:
        best = scores.top(size, per="model")
        learnt, judged = (
            neurons[rows][:, best.layer, best.index].double() for rows in (split.train, split.held)
        )
        speaks = scores.direction[best.layer, best.index].double()
        above = (judged > learnt.mean(0)).double() * 2 - 1
        told["vote"].append(Told(size, above @ speaks))
        try:
            fitted = fit_sparse_probe(
                learnt, split.wrong[split.train], k=size, test_fraction=0.1, preprocess="standardize", seed=0
            )
        except SparseProbeConvergenceError:
            continue
        scaled = (judged[:, fitted.selected_features] - fitted.preprocess_mean) / fitted.preprocess_scale
        told["probe"].append(Told(size, scaled @ fitted.coefficients))
    return told


def path_of(probe: Any) -> list[Told]:
    """hprobes' classifier at several strengths of its penalty: its only say in how many neurons it takes."""
    from sklearn.base import clone

    if probe._clf is None:
        raise RuntimeError("hprobes found all training answers right or all wrong, and fitted nothing")
    found = []
    for strength in STRENGTHS:
        fitted = probe._clf if strength == probe.l1_C else clone(probe._clf).set_params(C=strength)
        if fitted is not probe._clf:
            fitted.fit(probe._X_train_cache, probe._y_train_cache)
        values = torch.from_numpy(fitted.decision_function(probe._X_val))
        positive = probe._top_k_idx[fitted.coef_[0] > 0].tolist()
        of_layers = [divmod(place, probe._intermediate_dim) for place in positive]
        found.append(Told(int((fitted.coef_ != 0).sum()), values, of_layers))
    return found


def told_of_luck(scores: Any) -> dict[str, Any]:
    """What the permutations say of the ranking."""
    best = int(scores.null.p_family[-1].argmin())
    layer, index = divmod(best, scores.null.p_family.shape[-1])
    return {
        "best neuron": [layer, index],
        "its AUC on the training questions": 0.5 + float(scores.score.max()) / 2,
        "5 % by luck": 0.5 + scores.null.level() / 2,
        "p of the best": float(scores.null.p_family[-1].min()),
        "significant neurons": len(scores.significant()),
    }


def table_of(
    theirs: Sequence[Told], ours: dict[str, list[Told]], unsure: Tensor, wrong: Tensor
) -> list[dict[str, Any]]:
    """A row for each number of neurons: held-out AUROC with interval and p, and the differences at equal numbers."""
    rows = []
    by_size = {one.n_neurons: one.values for one in theirs if one.n_neurons}
    for size in sorted({*by_size, *(one.n_neurons for one in ours["vote"])}):
        row: dict[str, Any] = {"neurons": size}
        if size in by_size:
            row["hprobes"] = area(by_size[size], wrong)
        for kind, told in ours.items():
            values = next((one.values for one in told if one.n_neurons == size), None)
            if values is None:
                continue
            row[kind] = area(values, wrong)
            if size in by_size:
                row[f"{kind} less hprobes"] = difference(values, by_size[size], wrong)
        rows.append(row)
    return [*rows, {"neurons": None, "the model's own doubt": area(unsure, wrong)}]


def area(values: Tensor, wrong: Tensor) -> list[float]:
    """AUROC, its interval and its p-value."""
    found = skn.stats.auroc(values, wrong)
    return [found.value, found.low, found.high, found.p_value]


def difference(ours: Tensor, theirs: Tensor, wrong: Tensor, n_draws: int = 2000) -> list[float]:
    """The difference of two AUROCs on the same questions, and the ends of its bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    counts = skn.stats.bootstrap_counts(len(wrong), n_draws, generator)
    counts = torch.cat([torch.ones_like(counts[:1]), counts])
    counts = counts[(counts[:, wrong == 1].sum(1) > 0) & (counts[:, wrong == 0].sum(1) > 0)]
    apart = of_draws(ours, wrong, counts) - of_draws(theirs, wrong, counts)
    low, high = skn.stats.bootstrap_ends(apart[None, 1:], 0.95, skn.stats.Units.single(len(wrong)))
    return [float(apart[0]), float(low), float(high)]


def of_draws(values: Tensor, wrong: Tensor, counts: Tensor) -> Tensor:
    """The AUROC of each draw of the questions."""
    one, zero = counts[:, wrong == 1], counts[:, wrong == 0]
    apart = values[wrong == 1][:, None] - values[wrong == 0]
    wins = (apart > 0).double() + (apart == 0).double() / 2
    return ((one @ wins) * zero).sum(1) / (one.sum(1) * zero.sum(1))


def ablated(
    prompted: skn.PromptedModel,
    neurons: Tensor,
    texts: Sequence[str],
    gold: Tensor,
    split: Split,
    sets: dict[str, skn.NeuronSet],
    sizes: Any,
) -> dict[str, Any]:
    """Held-out answers with each set's neurons at zero at every position, beside random and matched sets."""
    if not sets:
        return {}
    rows = split.held[: sizes.n_ablated]
    right = gold[rows]
    size = neurons[split.train].abs().mean(0)
    told: dict[str, Any] = {"questions": len(rows)}
    with prompted.answering([texts[i] for i in rows]) as answer, torch.no_grad():
        told["untouched"] = answers_of(answer([]), right)
        for name, chosen in sets.items():
            drawn = with_controls({name: chosen}, prompted.model, size, sizes.n_controls, 0)
            values: dict[str, list[dict[str, float]]] = {}
            for (_, kind, _), one in drawn.sets.items():
                if kind in ("chosen", "matched") or (kind, name) == ("random", "ours"):
                    logits = answer(skn.ablate(one, how="zero"))
                    values.setdefault(kind, []).append(answers_of(logits, right))
            [own] = values.pop("chosen")
            told[name] = {"neurons": len(chosen), "ablated": own, "notes": drawn.notes}
            for kind, beside in values.items():
                told[name][kind] = {
                    metric: {
                        "median": skn.stats.median([one[metric] for one in beside]),
                        "range": [min(one[metric] for one in beside), max(one[metric] for one in beside)],
                        "p": skn.stats.rank_p_value(
                            own[metric], [one[metric] for one in beside], "two-sided"
                        ),
                    }
                    for metric in own
                }
    return told


def answers_of(logits: Tensor, right: Tensor) -> dict[str, float]:
    """How many answers are right, and the right letter's logit less the best other one's."""
    return {name: float(per_example(name, logits, right).mean()) for name in ("accuracy", "logit_diff")}


def lines_of(details: dict[str, Any]) -> list[str]:
    """What a reader wants to see of it."""
    lines = [f"  {name}: {details[name]}" for name in ("questions", "wrong", "rows of equal tokens")]
    lines += [
        f"  {name}: {details[name]}" for name in ("equal labels and split", "CPU seconds", "hprobes", "ours")
    ]
    for row in details["AUROC"]:
        cells = [f"{name} {' '.join(f'{n:.3f}' for n in row[name])}" for name in row if name != "neurons"]
        lines.append(f"  AUROC of {row['neurons'] or 'no'} neurons: {'; '.join(cells)}")
    return lines
