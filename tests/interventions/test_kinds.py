"""Interventions by name, and the reference values they hold neurons at: those of their own kind of position."""

import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, PromptedModel, SoftPrompt
from tl_skillneurons.interventions.kinds import choose_interventions, hooks_of, measure_references
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.prompts import neuron_activations

TASK = tiny.task()
NEURONS = NeuronSet([0, 1, 1], [3, 7, 9], n_layers=2, d_mlp=48)
TEXTS = list(TASK.split("report")["text"])
LABELS = torch.tensor(TASK.split("report")["label"])


def prompt(placement="suffix"):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement=placement)


@pytest.fixture(scope="module")
def prompted():
    return PromptedModel(tiny.bridge("llama"), prompt(), TASK.label_words)


@pytest.fixture(scope="module")
def references(prompted):
    return measure_references(prompted, TASK, "baseline", 10, ["prompt", "text"])


def seen(prompted, hooks, texts=TEXTS):
    """Activations of layer 1 after the hooks, and which positions are prompt and text."""
    kept = {}

    def keep(act, hook):
        kept["act"] = act

    tokens = prompted.tokens(texts)
    with torch.no_grad():
        prompted.run_with_hooks(texts, [*hooks, (neuron_hooks(prompted.model)[1], keep)])
    return kept["act"], tokens


def test_references_are_the_first_examples_of_each_class_evenly(prompted, references):
    split = TASK.split("baseline")
    rows = [k for k, label in enumerate(split["label"]) if label == 0][:5]
    rows = sorted(rows + [k for k, label in enumerate(split["label"]) if label == 1][:5])
    texts = [split["text"][k] for k in rows]
    expected = neuron_activations(prompted.model, prompted.prompt, texts)
    one = references["prompt"]
    assert torch.equal(one.activations, expected) and one.labels.tolist() == [split["label"][k] for k in rows]
    torch.testing.assert_close(one.mean, expected.mean(0))
    torch.testing.assert_close(one.class_mean[1], expected[one.labels == 1].mean(0))
    torch.testing.assert_close(one.std, expected.std(0, correction=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.mean_absolute, expected.abs().mean(0))


def act_on(prompted, references, name, positions, **amounts):
    [one] = choose_interventions([name], amounts.get("sigmas", (1,)), amounts.get("factors", (2,)))
    return hooks_of(one, NEURONS, positions, references, labels=LABELS, n_classes=2, seed=0)


def test_at_all_positions_each_is_held_at_the_value_of_its_kind(prompted, references):
    act, tokens = seen(prompted, act_on(prompted, references, "mean", "all"))
    for where, at in (("prompt", tokens.is_prompt), ("text", tokens.is_text)):
        expected = references[where].mean[1, [7, 9]]
        torch.testing.assert_close(act[at][:, [7, 9]], expected.expand(int(at.sum()), 2))
    assert not torch.allclose(references["prompt"].mean[1, 7], references["text"].mean[1, 7])


@pytest.mark.parametrize(("name", "shift"), [("class_mean", 0), ("other_class_mean", 1)])
def test_class_means_are_those_of_the_examples_own_or_of_the_next_class(prompted, references, name, shift):
    act, tokens = seen(prompted, act_on(prompted, references, name, "prompt"))
    for row, label in enumerate(LABELS.tolist()):
        expected = references["prompt"].class_mean[(label + shift) % 2, 1, 7]
        torch.testing.assert_close(act[row, tokens.is_prompt[row], 7], expected.expand(3))


def test_resampled_values_are_those_of_one_reference_example(prompted, references):
    act, tokens = seen(prompted, act_on(prompted, references, "resample", "prompt"))
    pool = references["prompt"].activations[:, 1, [7, 9]]
    for row in range(len(TEXTS)):
        at = act[row, tokens.is_prompt[row]][:, [7, 9]]
        assert (at[0] == pool).all(1).any() and (at == at[0]).all()


def test_scaling_and_noise_act_on_the_set_alone(prompted, references):
    plain, tokens = seen(prompted, [])
    for name in ("scale", "noise", "zero"):
        act, _ = seen(prompted, act_on(prompted, references, name, "prompt"))
        others = [k for k in range(48) if k not in (7, 9)]
        assert torch.equal(act[tokens.is_text], plain[tokens.is_text])  # a suffix: the text never sees it
        changed = act[tokens.is_prompt] - plain[tokens.is_prompt]
        assert (changed[:, [7, 9]].abs() > 0).all()
        assert changed[:, others].abs().max() < changed[:, [7, 9]].abs().max() or name == "noise"


def test_keep_holds_all_other_neurons_at_their_mean(prompted, references):
    act, tokens = seen(prompted, act_on(prompted, references, "keep", "prompt"))
    others = [k for k in range(48) if k not in (7, 9)]
    expected = references["prompt"].mean[1, others]
    torch.testing.assert_close(act[tokens.is_prompt][:, others], expected.expand(3 * len(TEXTS), 46))
    free = act[tokens.is_prompt][:, [7, 9]]
    assert (free != references["prompt"].mean[1, [7, 9]]).all()


def test_amounts_make_one_intervention_each():
    chosen = choose_interventions(["noise", "zero", "scale"], (0.5, 1), (0, 2.0))
    assert [str(one) for one in chosen] == ["noise 0.5", "noise 1", "zero", "scale 0", "scale 2"]


@pytest.mark.parametrize(
    ("names", "sigmas", "factors", "message"),
    [
        (["knockout"], (1,), (1,), "interventions must be one of"),
        ("zero", (1,), (1,), "must be a list of at least one name, got 'zero'"),
        ([], (1,), (1,), "at least one name"),
        (["noise"], (), (1,), "'noise' needs sigmas"),
        (["noise"], (0,), (1,), "sigmas must be positive"),
        (["scale"], (1,), (-1,), "factors must be at least 0"),
        (["scale"], (1,), (float("nan"),), "finite"),
    ],
)
def test_interventions_that_make_no_sense_are_refused(names, sigmas, factors, message):
    with pytest.raises(ValueError, match=message):
        choose_interventions(names, sigmas, factors)
