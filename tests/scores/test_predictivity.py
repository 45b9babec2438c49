"""Streaming scores against slow loops, planted truth, and what scoring must not do."""

import weakref
from dataclasses import replace

import pytest
import tiny
import torch
from toy import EXACT, HOOKS, QUIET, ROWS, TASK, prompt_for, slow_scores, task_of

import tl_skillneurons as skn
from tl_skillneurons.prompts.positions import current_tokens
from tl_skillneurons.scores.tallies import threshold


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


def score(model, prompts, task=TASK, batch_size=None, **settings):
    run = replace(QUIET, batch_size=batch_size)
    return skn.score_neurons(model, prompts, task, run=run, **settings)


@pytest.mark.parametrize(
    "positions, has_prompt",
    [("prompt", True), *((reading, has) for reading in ("last", "mean", "max") for has in (True, False))],
)
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_reading_equals_a_slow_loop(models, family, has_prompt, positions):
    model, prompt = models[family], prompt_for(family) if has_prompt else None
    scores = score(model, prompt, positions=positions, batch_size=7)
    mean, std, absolute, correct = slow_scores(model, prompt, positions)
    assert scores.positions == positions and scores.baseline.shape == (1, *mean.shape)
    torch.testing.assert_close(scores.baseline[0], mean, rtol=0, atol=EXACT)
    torch.testing.assert_close(scores.std[0], std.float(), rtol=1e-5, atol=1e-6)  # kept in float32
    torch.testing.assert_close(scores.mean_abs[0], absolute.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(scores.correct[0], correct)
    assert (scores.n_baseline, scores.n_select, scores.class_counts) == (24, 15, (8, 7))


def test_a_causal_prefix_is_scored_at_the_text(models):
    prompt = prompt_for("gpt2", placement="prefix")
    scores = score(models["gpt2"], prompt, positions="last")
    assert torch.equal(scores.correct[0], slow_scores(models["gpt2"], prompt, "last")[3])


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_counts_do_not_depend_on_batch_size_or_on_the_order_of_examples(models, family):
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    expected = score(models[family], prompts, batch_size=1)
    shuffled = [[rows[i] for i in torch.randperm(len(rows)).tolist()] for rows in (ROWS[:24], ROWS[24:39])]
    in_other_order = task_of(ROWS, train=shuffled[0], validation=shuffled[1])
    for task, batch_size in ((TASK, 7), (TASK, 100), (in_other_order, 7)):
        scores = score(models[family], prompts, task, batch_size=batch_size)
        assert torch.equal(scores.correct, expected.correct)
        torch.testing.assert_close(scores.baseline, expected.baseline, rtol=0, atol=EXACT)


@pytest.mark.parametrize("positions", ["prompt", "last", "mean", "max"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_counts_do_not_depend_on_the_padding_side(models, family, positions, monkeypatch):
    scores = {}
    for side in ("left", "right"):

        def on_this_side(*args, side=side, **settings):
            return skn.PromptedModel(*args, **settings, padding_side=side)

        monkeypatch.setattr("tl_skillneurons.scores.measured.PromptedModel", on_this_side)
        scores[side] = score(models[family], prompt_for(family), positions=positions)
    assert torch.equal(scores["left"].correct, scores["right"].correct)
    torch.testing.assert_close(scores["left"].baseline, scores["right"].baseline, rtol=0, atol=EXACT)


def test_several_prompts_are_scored_as_each_alone(models):
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    together = score(models["gpt2"], prompts, aggregate="min")
    for number, prompt in enumerate(prompts):
        assert torch.equal(together.correct[number], score(models["gpt2"], prompt).correct[0])
    assert together.aggregate == "min" and len(together.provenance["prompts"]) == 2


def test_a_planted_neuron_is_ranked_first_and_random_ones_are_not(models):
    words = tiny.sentences(160, seed=6)
    labels = (torch.rand(len(words), generator=torch.Generator().manual_seed(7)) < 0.5).int().tolist()
    texts = [
        row["text"].replace("good", "but").replace("bad", "but") for row in words
    ]  # nothing tells the label
    seen, rows = {}, []
    for text, label in zip(texts, labels, strict=True):
        if text not in seen:
            seen[text] = label
            rows.append({"text": text, "label": label})
    task = task_of(rows, validation=rows[24:100], test=rows[100:])
    by_ids = {tuple(tiny.VOCABULARY[w] for w in text.split()): label for text, label in seen.items()}

    def plant(act, hook):
        tokens = current_tokens(hook)
        planted = act.clone()
        for row, own in enumerate(tokens.is_text & ~tokens.is_special):
            label = by_ids[tuple(tokens.ids[row, own].tolist())]
            planted[row, tokens.is_prompt[row].nonzero()[1], 17] = 0.3 - 0.2 * label
        return planted

    scores = score(models["gpt2"], prompt_for("gpt2"), task, fwd_hooks=[(HOOKS[1], plant)])
    assert list(scores.top(1, per="model")) == [(1, 17)]
    assert scores.predictivity[1, 17] == 1 and scores.direction[1, 17] == -1
    assert scores.to_dataframe().query("layer == 1 and index == 17")["best_position"].item() == 1
    others = scores.predictivity.flatten().sort(descending=True).values[1:]
    assert others[0] <= scores.chance_level(0.01).threshold < 1
    report = skn.scores.evaluate_rules(models["gpt2"], prompt_for("gpt2"), task, scores, run=QUIET)
    random = scores.top(1, per="model").random_like(0)
    assert 0.3 < report.accuracy_of(random).item() < 0.7


@pytest.mark.parametrize(
    "dtype, positions",
    [
        *(
            (torch.float64, reading) for reading in ("prompt", "last", "max")
        ),  # a mean over tokens is rounded itself
        *((torch.float32, reading) for reading in ("prompt", "last", "mean", "max")),
        *((t, r) for t in (torch.bfloat16, torch.float16) for r in ("prompt", "mean")),
    ],
)
def test_a_constant_neuron_is_never_above_its_mean(dtype, positions):
    model = tiny.bridge("gpt2", dtype=dtype)
    values = torch.tensor([0.1, 0.3, 1 / 3, -0.7, 1e-3, 17.3, 0.0, -1e-6], dtype=torch.float64)

    def hold(act, hook):
        return torch.cat([values.to(act).expand(*act.shape[:2], -1), act[..., len(values) :]], dim=-1)

    hooks = [(name, hold) for name in HOOKS]
    for n in (24, 17):
        task = task_of(ROWS, train=ROWS[:n])
        held = score(model, prompt_for("gpt2"), task, positions=positions, fwd_hooks=hooks, batch_size=5)
        assert (held.correct[..., : len(values)] == 8).all()  # label 0 is right 8 times of 15
        assert held.std[..., : len(values)].max() <= 1e-6  # float64 sums of squares near 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neuron_of_two_neighbouring_values_is_told_from_its_mean(dtype):
    step = torch.finfo(dtype).eps

    def alternate(act, hook):
        upper = current_tokens(hook).example % 5 < 3  # 15 of 24: the mean lies nearer to the upper value
        return torch.where(upper[:, None, None], 1 + step, 1.0).to(act) + 0 * act

    scores = score(tiny.bridge("gpt2", dtype=dtype), prompt_for("gpt2"), fwd_hooks=[(HOOKS[0], alternate)])
    assert (scores.baseline[:, 0] == 1 + step * 15 / 24).all()
    labels = TASK.split("select")["label"]
    right = sum((number % 5 < 3) == bool(label) for number, label in enumerate(labels))
    assert right != labels.count(0)
    assert (scores.correct[:, 0] == right).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rounded_threshold_decides_as_the_exact_one(dtype):
    generator = torch.Generator().manual_seed(0)
    values = (
        torch.randn(4000, generator=generator) * 10.0 ** torch.randint(-4, 4, (4000,), generator=generator)
    ).to(dtype)
    wide = values.double()
    upper = torch.nextafter(values, torch.full_like(values, torch.inf)).double()
    share = torch.tensor([0, 1e-9, 0.25, 0.5, 0.75, 1 - 1e-9, 1], dtype=torch.float64)
    baselines = wide + share[:, None] * (upper - wide)
    limits = threshold(baselines, dtype)
    assert limits.dtype == dtype
    for acts in (values, upper.to(dtype), torch.nextafter(values, torch.full_like(values, -torch.inf))):
        assert torch.equal(acts > limits, acts.double() > baselines)


@pytest.mark.parametrize(
    "baseline, dtype, expected",
    [
        (1.0, torch.float32, 1.0),
        (1 + 2.0**-30, torch.float32, 1.0),
        (1 - 2.0**-30, torch.float32, 1 - 2.0**-24),
        (-1 - 2.0**-30, torch.float32, -1 - 2.0**-23),
        (0.0, torch.float32, 0.0),
        (1e-60, torch.float32, 0.0),
        (-1e-60, torch.float32, -(2.0**-149)),
        (1 + 2.0**-8, torch.bfloat16, 1.0),
        (1 - 2.0**-12, torch.bfloat16, 1 - 2.0**-8),
        (0.1, torch.float64, 0.1),
    ],
)
def test_a_threshold_is_the_largest_value_that_is_not_above_the_baseline(baseline, dtype, expected):
    limit = threshold(torch.tensor([baseline], dtype=torch.float64), dtype)
    assert limit.double().item() == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_activations_that_are_not_finite_are_named_by_layer_and_example(models, family, value):
    def spoil(act, hook):
        spoilt = act.clone()
        spoilt[current_tokens(hook).example == 5, :, 3] = value
        return spoilt

    message = f"activations are not finite in layer 1 on example 5 \\('{ROWS[5]['text']}'\\); load the model in float32"
    for positions in ("prompt", "max"):
        with pytest.raises(ValueError, match=message):
            score(
                models[family],
                prompt_for(family),
                fwd_hooks=[(HOOKS[1], spoil)],
                batch_size=4,
                positions=positions,
            )


def three_classes():
    rows = [{**row, "label": number % 3} for number, row in enumerate(ROWS)]
    return task_of(rows, {0: "negative", 1: "positive", 2: "other"})


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        (
            prompt_for("gpt2", placement="prefix"),
            {},
            "this prompt is a prefix and the model is causal: .* never see it",
        ),
        (
            None,
            {},
            "without a prompt there are no prompt positions; use positions='last', 'mean', 'max' or 'readout'",
        ),
        ([], {"positions": "last"}, "at least one soft prompt; give None to score the bare text"),
        (
            prompt_for("gpt2"),
            {"task": three_classes()},
            r"two classes, toy has 3; score each of task.binary_subtasks",
        ),
        (prompt_for("gpt2"), {"positions": "first"}, "positions must be one of .*got 'first'"),
        (prompt_for("gpt2"), {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (prompt_for("gpt2"), {"aggregate": "max"}, "aggregate must be one of 'mean', 'min', got 'max'"),
        (
            [prompt_for("gpt2"), prompt_for("gpt2", n=4)],
            {},
            "prompts of one set need equally many virtual tokens",
        ),
        (prompt_for("gpt2"), {"max_length": 3}, "3 prompt positions leave no room for text"),
    ],
)
def test_what_cannot_be_scored_is_refused(models, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        score(models["gpt2"], prompts, **settings)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_nothing_after_the_last_neurons_runs_and_no_activation_is_kept(family):
    model = tiny.bridge(family)
    fired, alive = [], []
    late = ["unembed.hook_in", "unembed.hook_out", "blocks.1.hook_mlp_out"]
    for name in late:
        model.add_hook(name, lambda act, hook: fired.append(hook.name))
    kept = []

    def watch(act, hook):
        kept.append(weakref.ref(act))
        alive.append(sum(ref() is not None for ref in kept))

    score(model, prompt_for(family), batch_size=2, fwd_hooks=[(name, watch) for name in HOOKS])
    assert fired == [] and len(alive) == 2 * (12 + 8)  # both layers, 24 and 15 examples in pairs
    assert max(alive) <= 4  # this batch's and at most the one before
    assert all(ref() is None for ref in kept)
    with torch.no_grad():
        model(torch.tensor([[7, 8]]))
    assert len(fired) == len(late)  # the watched hooks do fire in a whole run


def test_scores_say_what_they_were_measured_on(models):
    scores = score(models["gpt2"], prompt_for("gpt2"))
    assert scores.site == "mlp.hook_post"
    task = scores.provenance["task"]
    assert (task["name"], task["fingerprint"]) == ("toy", TASK.fingerprint)
    assert (task["label_names"], task["label_words"]) == ([0, 1], ["negative", "positive"])
    assert task["template"] == "{text}" and set(task["roles"]) == set(task["tokens"]) == {
        "baseline",
        "select",
    }
    assert scores.provenance["model"]["name"] == "tiny"
    assert scores.top(1).model == "tiny"


def test_each_class_of_three_is_scored_in_one_pass_as_if_alone(models):
    task = three_classes()
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    classes = skn.scores.score_classes(models["gpt2"], prompts, task, n_permutations=99, seed=5, run=QUIET)
    for class_id, subtask in enumerate(task.binary_subtasks()):
        alone = skn.score_neurons(models["gpt2"], prompts, subtask, run=QUIET)
        assert torch.equal(classes[class_id].correct, alone.correct)
        assert classes[class_id].class_counts == alone.class_counts
        assert classes[class_id].class_id == class_id and classes[class_id].null.n_permutations == 99
        rule = skn.scores.evaluate_rules(models["gpt2"], prompts, task, classes[class_id], run=QUIET)
        other = skn.scores.evaluate_rules(models["gpt2"], prompts, subtask, alone, run=QUIET)
        assert torch.equal(rule.accuracy, other.accuracy)


def slow_union(scores, share):
    """The paper's rule a neuron at a time: int(share * d_mlp) of each subtask and layer, lowest index first."""
    chosen = set()
    for one in scores:
        for layer in range(one.n_layers):
            ranked = sorted(range(one.d_mlp), key=lambda i: (-float(one.predictivity[layer, i]), i))
            chosen |= {(layer, i) for i in ranked[: int(share * one.d_mlp)]}
    return chosen


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_the_union_of_subtasks_takes_equally_many_of_each_ties_by_lowest_index(models, aggregate):
    task = three_classes()
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    classes = skn.scores.score_classes(models["bert"], prompts, task, aggregate=aggregate, run=QUIET)
    ties = [len(one.predictivity[0].unique()) for one in classes]
    assert min(ties) < 48  # there are ties to decide
    union = skn.scores.top_union(classes, 0.1)
    assert set(union) == slow_union(classes, 0.1)
    with pytest.raises(ValueError, match="at least one subtask"):
        skn.scores.top_union([], 0.1)


def test_prompts_of_different_lengths_come_back_in_the_order_given():
    model, task = tiny.bridge("llama"), tiny.task()
    generator = torch.Generator().manual_seed(0)
    prompts = [skn.SoftPrompt(torch.randn(n, 32, generator=generator), placement="suffix") for n in (2, 4, 2)]
    together = skn.score_neurons(model, prompts, task, positions="last", run=QUIET)
    for number, prompt in enumerate(prompts):
        alone = skn.score_neurons(model, prompt, task, positions="last", run=QUIET)
        assert torch.equal(together.correct[number], alone.correct[0])
        assert together.provenance["prompts"][number] == alone.provenance["prompts"][0]
