"""What ablating neurons does beside random controls, on a model whose answers hang on one planted neuron."""

from dataclasses import replace

import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, PromptedModel, SoftPrompt
from tl_skillneurons.interventions import AblationEffect, ablation_effect, accuracy, effects
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.prompts.positions import current_tokens

TASK = tiny.task(n_train=8, n_select=10, n_report=12)
PLANTED = NeuronSet(torch.tensor([1]), torch.tensor([7]))
SHAPE = (2, 48)
ZEROS = [torch.zeros(SHAPE)]
QUICK = {"how": "zero", "n_random": 3, "progress": False}


def prompt(seed=0):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(rows, placement="suffix", provenance={}, seed=seed)


def tiny_width():
    return SoftPrompt(torch.ones(3, 16), placement="suffix")


@pytest.fixture(scope="module")
def planted():
    """Neuron 7 of layer 1 is high for class 1 and low for class 0, and alone moves the label words' logits."""
    model = tiny.bridge("llama")
    label_of = {text: label for role in TASK.splits for text, label in _rows(role)}

    def plant(act, hook):
        tokens = current_tokens(hook)
        text = [
            model.tokenizer.decode(ids[is_text])
            for ids, is_text in zip(tokens.ids, tokens.is_text, strict=True)
        ]
        labels = torch.tensor([label_of[t.removeprefix("<s>").strip()] for t in text])
        act = act.clone()
        act[:, :, 7] = 20.0 * (2 * labels[:, None] - 1)
        return act

    ids = [tiny.VOCABULARY[word] for word in TASK.label_words.values()]
    with torch.no_grad():
        model.blocks[1].mlp.W_out[7] = model.W_U[:, ids[1]] - model.W_U[:, ids[0]]
    model.add_hook(neuron_hooks(model)[1], plant, is_permanent=True)
    return model


def _rows(role):
    split = TASK.split(role)
    return zip(split["text"], split["label"], strict=True)


def run(model, neurons=PLANTED, prompts=None, task=TASK, **changes):
    return ablation_effect(model, prompts or prompt(), task, neurons, **(QUICK | changes))


@pytest.mark.parametrize(("how", "values"), [("zero", None), ("mean", ZEROS)])
def test_ablating_the_neuron_that_answers_harms_and_random_ones_do_not(planted, how, values):
    effect = run(planted, how=how, values=values, n_random=19)
    assert effect.intact.tolist() == [1.0]
    assert effect.ablated.item() <= 0.75
    assert effect.random.tolist() == [[1.0] * 19]
    assert effect.p_value == 1 / 20
    assert (effect.role, effect.n_examples, effect.n_neurons, effect.how) == ("report", 12, 1, how)


def test_ablating_a_neuron_that_does_nothing_is_as_harmless_as_the_controls(planted):
    effect = run(planted, NeuronSet(torch.tensor([0]), torch.tensor([3])))
    assert effect.ablated.tolist() == [1.0] and effect.p_value == 1.0


def test_the_accuracy_is_that_of_the_run_one_would_do_by_hand(planted):
    own = prompt()
    prompted = PromptedModel(planted, own, TASK.label_words)
    hooks = [(neuron_hooks(planted)[1], lambda act, hook: torch.where(torch.arange(48) == 7, 0.0, act))]
    for role in ("select", "report"):
        right = 0
        for text, label in _rows(role):
            with torch.no_grad():
                right += int(prompted.class_logits([text], hooks).argmax()) == label
        effect = run(planted, role=role)
        assert effect.ablated.item() == pytest.approx(right / len(TASK.split(role)), abs=1e-7)
        assert effect.n_examples == len(TASK.split(role)) and effect.role == role
        texts, labels = TASK.split(role)["text"][:], TASK.split(role)["label"][:]
        assert accuracy(prompted, texts, labels, fwd_hooks=hooks) == right / len(texts)
        assert accuracy(prompted, texts, labels, fwd_hooks=hooks, batch_size=3) == right / len(texts)


def watch(monkeypatch):
    """What each ablation was asked to hold, in order."""
    asked = []
    real = effects.ablate

    def ablate(neurons, **settings):
        asked.append((neurons, settings))
        return real(neurons, **settings)

    monkeypatch.setattr(effects, "ablate", ablate)
    return asked


@pytest.mark.parametrize("match", [None, torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))])
def test_controls_are_other_neurons_equally_many_per_layer(planted, monkeypatch, match):
    asked = watch(monkeypatch)
    skill = NeuronSet(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2, 9, 7, 0, 47]))
    run(planted, skill, n_random=6, match=match, seed=5)
    first, *controls = [neurons for neurons, _ in asked]
    assert first == skill and len(controls) == 6
    for control in controls:
        assert len(control & skill) == 0
        assert {layer: len(index) for layer, index in control.by_layer().items()} == {0: 2, 1: 3}
    assert len({tuple(control) for control in controls}) == 6
    asked.clear()
    run(planted, skill, n_random=6, match=match, seed=5)
    assert [neurons for neurons, _ in asked] == [skill, *controls]


def test_each_prompt_runs_with_its_own_values_and_the_same_ablation(planted, monkeypatch):
    asked = watch(monkeypatch)
    values = [torch.zeros(SHAPE), torch.ones(SHAPE)]
    settings = {"how": "mean", "positions": "prompt", "sigma": 0.3, "seed": 4}
    effect = run(planted, prompts=[prompt(0), prompt(1)], values=values, n_random=2, **settings)
    assert effect.random.shape == (2, 2) and effect.positions == "prompt"
    assert len(asked) == 6
    for number, (_, told) in enumerate(asked):
        assert told["values"] is values[number // 3]
        assert {name: told[name] for name in settings} == settings
    one = run(planted, prompts=[prompt(1)], values=values[1:], n_random=2, **settings)
    assert torch.equal(effect.ablated[1:], one.ablated) and torch.equal(effect.random[1:], one.random)


def test_longer_texts_can_be_cut(planted, monkeypatch):
    lengths = []
    real = PromptedModel.assemble

    def assemble(self, *args):
        tokens = real(self, *args)
        lengths.append(tokens.ids.shape[1])
        return tokens

    bare = tiny.bridge("llama")
    monkeypatch.setattr(PromptedModel, "assemble", assemble)
    run(bare, max_length=7)
    assert max(lengths) == 7
    lengths.clear()
    run(bare, batch_size=1)
    assert max(lengths) > 7 and len(lengths) == 12 * 5


# Going on


@pytest.mark.parametrize("n_done", [1, 4, 7])
def test_going_on_measures_only_what_is_left(planted, monkeypatch, tmp_path, n_done):
    path = tmp_path / "new" / "effect.json"
    both = [prompt(0), prompt(1)]
    whole = run(planted, prompts=both)
    real, calls = effects.accuracy, []

    def stops(*args, **kwargs):
        if len(calls) == n_done:
            raise KeyboardInterrupt
        calls.append(real(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(effects, "accuracy", stops)
    with pytest.raises(KeyboardInterrupt):
        run(planted, prompts=both, path=path)
    first, calls = list(calls), []
    monkeypatch.setattr(
        effects, "accuracy", lambda *args, **kwargs: calls.append(real(*args, **kwargs)) or calls[-1]
    )
    effect = run(planted, prompts=both, path=path)
    assert len(first) == n_done and len(calls) == 2 * 5 - n_done
    for name in ("intact", "ablated", "random"):
        assert torch.equal(getattr(effect, name), getattr(whole, name))
    calls.clear()
    more = run(planted, prompts=both, path=path, n_random=4)  # a fourth control, the others kept
    assert len(calls) == 2 and torch.equal(more.random[:, :3], whole.random)
    assert [file.name for file in path.parent.iterdir()] == ["effect.json"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": prompt(9)}, "prompts"),
        ({"prompts": [prompt(), prompt(1)], "values": 2 * ZEROS}, "prompts, values"),
        ({"neurons": NeuronSet(torch.tensor([1]), torch.tensor([8]))}, "neurons"),
        ({"task": replace(TASK, template="{text}!")}, "task"),
        ({"role": "select"}, "role"),
        ({"how": "zero", "values": None}, "how, values"),
        ({"positions": "text"}, "positions"),
        ({"seed": 1}, "seed"),
        ({"sigma": 0.2}, "sigma"),
        ({"values": [torch.ones(SHAPE)]}, "values"),
        ({"match": ZEROS[0]}, "match"),
        ({"max_length": 40}, "max_length"),
    ],
)
def test_a_file_of_other_settings_is_refused_naming_them(planted, tmp_path, changes, named):
    path = tmp_path / "effect.json"
    settings = {"how": "mean", "values": ZEROS, "n_random": 1, "path": path}
    run(planted, **settings)
    before = path.read_bytes()
    with pytest.raises(ValueError) as refusal:
        run(planted, **(settings | changes))
    assert f"is from another run ({named} differ); choose another path, or delete it" in str(refusal.value)
    assert path.read_bytes() == before


def test_a_file_of_another_model_is_refused(planted, tmp_path):
    run(planted, path=tmp_path / "effect.json")
    with pytest.raises(ValueError, match=r"is from another run \(model differ\)"):
        run(tiny.bridge("mistral"), path=tmp_path / "effect.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("{}", "was not written by"), ('{"kind": "NeuronSet"}', "holds a NeuronSet")],
)
def test_a_file_that_is_none_of_ours_is_refused(planted, tmp_path, content, message):
    (tmp_path / "effect.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        run(planted, path=tmp_path / "effect.json")
    assert (tmp_path / "effect.json").read_text() == content


# The result


def result(intact, ablated, random, n_examples=10):
    return AblationEffect(
        intact=torch.tensor(intact),
        ablated=torch.tensor(ablated),
        random=torch.tensor(random),
        how="zero",
        positions="all",
        role="report",
        n_examples=n_examples,
        n_neurons=1,
    )


def test_the_table_has_a_row_per_prompt_and_condition():
    frame = result([0.9, 0.8], [0.5, 0.6], [[0.9, 0.7], [0.8, 0.4]]).to_dataframe()
    assert list(frame.columns) == [
        "prompt", "condition", "draw", "accuracy", "role", "n_examples", "how", "positions",
    ]  # fmt: skip
    assert frame["condition"].tolist() == ["intact", "ablated", "random", "random"] * 2
    assert frame["prompt"].tolist() == [0] * 4 + [1] * 4
    assert frame["draw"].tolist()[2:4] == [0, 1] and frame["draw"].isna().tolist()[:2] == [True, True]
    assert frame["accuracy"].tolist() == pytest.approx([0.9, 0.5, 0.9, 0.7, 0.8, 0.6, 0.8, 0.4])
    assert set(frame["role"]) == {"report"} and set(frame["n_examples"]) == {10}


@pytest.mark.parametrize(
    ("ablated", "random", "p_value"),
    [
        ([0.5], [[0.9, 0.8, 0.7, 0.6]], 1 / 5),
        ([0.5], [[0.9, 0.5, 0.7, 0.4]], 3 / 5),  # a tie counts as low
        ([0.5, 0.9], [[0.9, 0.6], [0.4, 0.9]], 2 / 3),  # the mean over prompts
    ],
)
def test_the_p_value_ranks_the_ablation_among_the_controls(ablated, random, p_value):
    assert result(ablated, ablated, random).p_value == pytest.approx(p_value)


def test_equal_accuracies_are_ties_whatever_the_order_of_the_sum():
    generator = torch.Generator().manual_seed(0)
    for n_prompts in (3, 5, 9, 33):
        counts = torch.randint(0, 873, (n_prompts,), generator=generator)
        shuffled = counts[torch.randperm(n_prompts, generator=generator)]
        ablated, control = (counts / 872).tolist(), (shuffled / 872)[:, None].tolist()
        assert result(ablated, ablated, control, n_examples=872).p_value == 1.0


# Refusals


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_random": 0}, ValueError, "n_random must be an integer of at least 1, got 0"),
        ({"neurons": NeuronSet(torch.tensor([1]), torch.tensor([48]))}, ValueError, "48"),
        ({"neurons": NeuronSet(torch.tensor([2]), torch.tensor([0]))}, ValueError, "2"),
        (
            {"how": "mean", "values": 2 * ZEROS},
            ValueError,
            "values must hold one tensor for each of 1 prompts, got 2",
        ),
        ({"how": "mean"}, ValueError, "values"),
        ({"how": "mean", "values": [torch.zeros(2, 47)]}, ValueError, "47"),
        ({"how": "men"}, ValueError, "did you mean 'mean'"),
        ({"positions": "al"}, ValueError, "positions"),
        ({"role": "test"}, ValueError, "role must be one of"),
        ({"match": torch.zeros(2, 47)}, ValueError, "match"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
        ({"prompts": [prompt(), tiny_width()]}, ValueError, "embeddings are 16 wide"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
    ],
)
def test_what_cant_be_ablated_is_refused_and_nothing_is_written(planted, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(planted, path=tmp_path / "effect.json", **changes)
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_at_all_is_refused(planted):
    with pytest.raises(ValueError, match="prompts must hold at least one soft prompt, got none"):
        ablation_effect(planted, [], TASK, PLANTED, **QUICK)


def test_too_few_neurons_for_controls_are_refused(planted):
    most = NeuronSet.from_mask(torch.ones(SHAPE, dtype=torch.bool))
    with pytest.raises(ValueError, match="layer 0"):
        run(planted, most)


@pytest.mark.parametrize("other", [401, 460, 523, 599])
def test_equal_numbers_of_right_answers_are_a_tie_however_they_are_spread_over_prompts(other):
    from tl_skillneurons.interventions import AblationEffect

    effect = AblationEffect(
        intact=torch.tensor([522, 518], dtype=torch.float64) / 600,
        ablated=torch.tensor([503, 451], dtype=torch.float64) / 600,
        random=torch.tensor([[other, 520], [954 - other, 510]], dtype=torch.float64) / 600,
        how="mean",
        positions="all",
        role="report",
        n_examples=600,
        n_neurons=1,
    )
    _, ablated, random = effect.mean_over_prompts()
    assert ablated == random[0] < random[1]
    assert effect.p_value == pytest.approx(2 / 3)
