"""Interventions as values: each against a slow loop over examples, positions and neurons; any function beside them."""

import math
from dataclasses import dataclass

import pytest
import tiny
import torch

from tl_skillneurons import InputCache, NeuronSet, PromptedModel, RunOptions, SoftPrompt, ablate
from tl_skillneurons.interventions import (
    ClassMean,
    GivenValues,
    Intervention,
    Keep,
    Mean,
    Noise,
    OtherClassMean,
    Resample,
    Scale,
    Shift,
    Zero,
)
from tl_skillneurons.interventions.ablation import ablate_where_known
from tl_skillneurons.interventions.kinds import SHORT_NAMES, as_intervention, as_interventions
from tl_skillneurons.interventions.references import measure_references
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.prompts import neuron_activations

TASK = tiny.task()
NEURONS = NeuronSet([0, 1, 1], [3, 7, 9], n_layers=2, d_mlp=48)
OTHERS = [k for k in range(48) if k not in (7, 9)]
TEXTS = list(TASK.split("report")["text"])
LABELS = torch.tensor(TASK.split("report")["label"])


@dataclass(frozen=True)
class Flipped(Intervention):
    """One of a user's own: mirrored about the reference mean."""

    uses = ("mean",)

    def edit(self, old, at):
        return 2 * at.mean.to(old) - old


def prompt(placement="suffix"):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement=placement)


@pytest.fixture(scope="module")
def prompted():
    return PromptedModel(tiny.bridge("llama"), prompt(), TASK.label_words)


@pytest.fixture(scope="module")
def references(prompted):
    return measure_references(prompted, TASK, "baseline", 10, ["prompt", "text", "special"])


def layer_1(prompted, hooks):
    """Activations of layer 1 before and after the hooks, and which positions are prompt and text."""
    kept = {}
    look = neuron_hooks(prompted.model)[1]
    before = (look, lambda act, hook: kept.update(before=act))
    after = (look, lambda act, hook: kept.update(after=act))
    tokens = prompted.tokens(TEXTS)
    with torch.no_grad():
        prompted.run_with_hooks(TEXTS, [before, *hooks, after])
    return kept["before"], kept["after"], tokens


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
    everyone = measure_references(prompted, TASK, "baseline", None, ["prompt"])
    assert len(everyone["prompt"].labels) == len(split)


def _generator(*numbers):
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def by_hand(how, reference, old, example, label, neuron, column, seed):
    """What one number of layer 1 becomes; ``column`` is the neuron's place in the set's neurons of the layer."""
    if isinstance(how, Keep):
        how = how.other
    if isinstance(how, Zero):
        return 0.0
    if isinstance(how, Mean):
        return reference.activations[:, 1, neuron].double().mean().item()
    if isinstance(how, ClassMean | OtherClassMean):
        wanted = label if isinstance(how, ClassMean) else (label + 1) % 2
        return reference.activations[reference.labels == wanted, 1, neuron].double().mean().item()
    if isinstance(how, Resample):
        drawn = torch.randint(len(reference.labels), (), generator=_generator(seed, example)).item()
        return reference.activations[drawn, 1, neuron].item()
    if isinstance(how, Noise):
        noise = torch.randn(2, generator=_generator(seed, example, 1))[column].item()
        std = 1 if how.absolute else reference.activations[:, 1, neuron].double().std(correction=0).item()
        return old + how.sigma * std * noise
    if isinstance(how, Scale):
        return how.factor * old
    if isinstance(how, Shift):
        acts, one = reference.activations[:, 1, [7, 9]].double(), how.toward
        away = acts[reference.labels == one].mean(0) - acts[reference.labels != one].mean(0)
        if (
            not away.any()
        ):  # the special token before every text is alike in both classes: there is no direction
            return old
        unit = away / away.square().sum().sqrt()
        along = [float(row @ unit) for row in acts]
        spread = (sum((a - sum(along) / len(along)) ** 2 for a in along) / len(along)) ** 0.5
        return old + how.by * spread * unit[column].item()
    return 2 * reference.activations[:, 1, neuron].double().mean().item() - old  # Flipped


EVERY = [
    Zero(),
    Mean(),
    ClassMean(),
    OtherClassMean(),
    Resample(),
    Noise(0.7),
    Noise(0.1, absolute=True),
    Scale(1.7),
    Shift(0, by=-1.5),
    Keep(),
    Keep(Zero()),
    Flipped(),
]


@pytest.mark.parametrize("positions", ["prompt", "all"])
@pytest.mark.parametrize("how", EVERY, ids=lambda how: how.name)
def test_each_does_what_a_slow_loop_over_examples_positions_and_neurons_does(
    prompted, references, how, positions
):
    hooks = ablate_where_known(NEURONS, how, positions, references, labels=LABELS, seed=5)
    before, after, tokens = layer_1(prompted, hooks)
    edited = OTHERS if how.edits_others else [7, 9]
    assert (before[..., edited] != after[..., edited]).any()
    for row, label in enumerate(LABELS.tolist()):
        for column in tokens.attention_mask[row].nonzero().flatten().tolist():
            kinds = {"prompt": tokens.is_prompt, "special": tokens.is_special, "text": tokens.is_text}
            kind = next(name for name, where in kinds.items() if where[row, column])
            for place, neuron in enumerate(edited[:2]):
                old = before[row, column, neuron].item()
                expected = old
                if kind == "prompt" or positions == "all":
                    expected = by_hand(how, references[kind], old, row, label, neuron, place, 5)
                assert after[row, column, neuron].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    untouched = [k for k in range(48) if k not in edited]
    assert torch.equal(before[..., untouched], after[..., untouched])


def test_a_function_of_the_chosen_neurons_activations_works_wherever_a_class_does(prompted, references):
    seen = []

    def halved(act, hook):
        seen.append((hook.name, act.shape[-1]))
        return act / 2

    half = layer_1(prompted, ablate(NEURONS, how=Scale(0.5), positions="prompt"))[1]
    for hooks in (
        ablate(NEURONS, how=halved, positions="prompt"),
        ablate_where_known(NEURONS, as_intervention(halved), "prompt", {}, labels=None, seed=0),
    ):
        assert torch.equal(layer_1(prompted, hooks)[1], half)
    assert seen == [*zip(neuron_hooks(prompted.model).values(), [1, 2], strict=True)] * 2
    nothing = ablate(NEURONS, how=lambda act, hook: None)
    before, after, _ = layer_1(prompted, nothing)
    assert torch.equal(before, after)


@torch.no_grad()
def test_a_function_that_looks_at_other_positions_sees_them_with_a_cache_too(prompted):
    def averaged(act, hook):
        return act.mean(1, keepdim=True).expand_as(act)

    hooks = ablate(NEURONS, how=averaged, positions="prompt")
    model = prompted.model
    one = RunOptions(batch_size=1)  # no padding, which such a function would average as well
    cached = RunOptions(batch_size=1, cache=InputCache(model))
    logits = [
        PromptedModel(model, prompted.prompt, TASK.label_words, run=run).class_logits(TEXTS, hooks)
        for run in (one, cached)
    ]
    torch.testing.assert_close(*logits)


def test_names_say_what_and_how_much_and_strings_are_short_for_the_defaults():
    assert [one.name for one in EVERY[:9]] == [
        "zero", "mean", "class_mean", "other_class_mean", "resample", "noise 0.7", "noise 0.1 absolute",
        "scale 1.7", "shift to 0 by -1.5",
    ]  # fmt: skip
    assert Keep().name == "keep" and Keep(Zero()).name == "keep, others zero" and Flipped().name == "flipped"
    assert as_intervention("noise") == Noise() and as_intervention("keep") == Keep(Mean())
    assert {name.split()[0] for name in SHORT_NAMES} == {one.name.split()[0] for one in SHORT_NAMES.values()}
    assert as_interventions("mean") == [Mean()] and as_interventions(Mean()) == [Mean()]
    assert as_interventions(["mean", Mean(), Noise(0.5), Noise(1), "zero"]) == [
        Mean(), Noise(0.5), Noise(1), Zero(),
    ]  # fmt: skip


def test_one_that_needs_several_kinds_of_values_takes_them_together(prompted, references):
    @dataclass(frozen=True)
    class Standardized(Intervention):
        uses = ("mean", "std")

        def edit(self, old, at):
            return (old - at.mean.to(old)) / at.std.to(old)

    reference = references["prompt"]
    given = GivenValues(mean=reference.mean, std=reference.std)
    first, second = (
        layer_1(prompted, ablate(NEURONS, how=Standardized(), values=values, positions="prompt"))[1]
        for values in (given, reference)
    )
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"needs several kinds of values \(mean, std\); give GivenValues"):
        ablate(NEURONS, how=Standardized(), values=reference.mean)
    with pytest.raises(ValueError, match="reads the reference 'std', which nobody gave"):
        layer_1(prompted, ablate(NEURONS, how=Standardized(), values=GivenValues(mean=reference.mean)))


def test_a_shift_goes_from_the_mean_of_the_other_classes_to_a_class_that_the_reference_has(prompted):
    means = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[0.0, 6.0]]])
    acts = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    given = GivenValues(class_mean=means, activations=acts)
    (_, hook_function), *_ = ablate(NeuronSet([0, 0], [0, 1]), how=Shift(1, by=2.0), values=given)
    point = prompted.model.hook_dict[neuron_hooks(prompted.model)[0]]
    moved = hook_function(torch.zeros(1, 1, 2), hook=point)[0, 0]
    unit = torch.tensor([3.0, -3.0]) / 18**0.5  # class 1 at (3, 0), the others' mean at (0, 3)
    torch.testing.assert_close(moved, 2 * (acts[:, 0] @ unit).std(correction=0) * unit)
    equal = GivenValues(class_mean=torch.zeros(2, 1, 2), activations=acts)
    ((_, nowhere),) = ablate([(0, 0), (0, 1)], how=Shift(1), values=equal)
    assert torch.equal(nowhere(torch.ones(1, 1, 2), hook=point), torch.ones(1, 1, 2))
    ((_, absent),) = ablate([(0, 0), (0, 1)], how=Shift(3), values=given)
    with pytest.raises(ValueError, match=r"a direction to class 3 needs .* has those of the classes 0 to 2"):
        absent(torch.ones(1, 1, 2), hook=point)


def reduced(act, hook):
    return act.mean(-1, keepdim=True)


def twice_named():
    def same(act, hook):
        return act

    return same


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: as_interventions(["knockout"]), ValueError, "interventions must be one of 'zero'"),
        (lambda: as_interventions(["men"]), ValueError, "did you mean 'mean'"),
        (lambda: as_interventions([]), ValueError, "at least one, got none"),
        (lambda: as_interventions([Mean]), TypeError, r"an intervention such as Mean\(\)"),
        (
            lambda: as_interventions([twice_named(), twice_named()]),
            ValueError,
            "two interventions are called",
        ),
        (lambda: Noise(0), ValueError, "sigma must be positive and finite, got 0"),
        (lambda: Noise(math.nan), ValueError, "sigma must be positive and finite, got nan"),
        (lambda: Scale(-1), ValueError, "factor must be at least 0 and finite, got -1"),
        (lambda: Scale(math.inf), ValueError, "factor must be at least 0 and finite, got inf"),
        (lambda: Shift(-1), ValueError, "toward must be an integer of at least 0, got -1"),
        (lambda: Shift(1, by=math.nan), ValueError, "by must be finite, got nan"),
        (lambda: Keep(Keep()), ValueError, "edits all others itself"),
    ],
)
def test_interventions_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (reduced, ValueError, r"'reduced' must give \[16, \d+, 2\] as it got, gave \[16, \d+, 1\]"),
        (Intervention(), NotImplementedError, r"define edit\(old, at\)"),
    ],
)
def test_what_gives_nothing_of_use_is_refused_when_the_model_runs(prompted, how, error, message):
    with pytest.raises(error, match=message):
        layer_1(prompted, ablate(NEURONS, how=how))
